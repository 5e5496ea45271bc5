use proptest::prelude::*;

use super::*;

const SECRET: &str = "o66bSwNoxI6solXvJ8v7BrXZFHYcX/iUhEqvY7Og3FA=";

fn braces(name: &str, algorithm: &str, secret: &str) -> String {
    format!("key \"{name}\" {{\n\talgorithm {algorithm};\n\tsecret \"{secret}\";\n}};\n")
}

fn yaml(name: &str, algorithm: &str, secret: &str) -> String {
    format!(
        "# {algorithm}:{name}:{secret}\nkey:\n  - id: {name}\n    algorithm: {algorithm}\n    \
         secret: {secret}\n"
    )
}

#[test]
fn both_forms_of_a_key_are_read() {
    for text in [braces("Edge.", "hmac-sha512", SECRET), yaml("edge", "HMAC-SHA512.", SECRET)] {
        let key = TsigKey::parse(&text).expect(&text);
        assert_eq!((key.name(), key.algorithm()), ("edge", Algorithm::HmacSha512));
        assert_eq!(BASE64.encode(key.secret()), SECRET);
    }
    // Without quotes, on one line, with a secret that holds what would begin a comment elsewhere.
    let text =
        "/* of\nthe site */ key a { secret AAAA//AAAA/*AAAAAAAAAA==; algorithm hmac-sha256; };";
    assert_eq!(TsigKey::parse(text).expect_err("'*' is none of base64").line, 2);
    let text = text.replace("/*AAAAAA", "AAAAAAAA");
    assert!(TsigKey::parse(&text).is_ok(), "{text}");
}

#[test]
fn a_secret_that_begins_like_a_comment_is_a_secret() {
    // One key in 4,096 does.
    let secret = "//BmSwNoxI6solXvJ8v7BrXZFHYcX/iUhEqvY7Og3FA=";
    for text in [braces("edge", "hmac-sha256", secret), yaml("edge", "hmac-sha256", secret)] {
        assert_eq!(BASE64.encode(TsigKey::parse(&text).expect(&text).secret()), secret);
    }
}

#[test]
fn a_bad_key_is_refused_with_its_line_and_without_its_secret() {
    let good = braces("edge", "hmac-sha256", SECRET);
    let refused = |text: &str, line: usize, part: &str| {
        let error = TsigKey::parse(text).expect_err(text);
        assert!(error.line == line && error.problem.contains(part), "{error} of {text}");
        assert!(!error.problem.contains(&SECRET[..8]), "{error}");
        assert_eq!(error.in_file(Path::new("k")), format!("k:{line}: {}", error.problem));
    };
    refused("", 1, "a key is missing");
    refused("\n\nzone edge {", 3, "begins with 'key NAME {'");
    refused(&good.replace("hmac-sha256", "hmac-md5"), 2, "hmac-sha256, hmac-sha384, hmac-sha512");
    refused(&good.replace('=', "!"), 3, "no base64");
    refused(&good.replace("edge", "ed ge"), 1, "domain name");
    refused(&good.replace(SECRET, "AAAA"), 1, "3 bytes");
    refused(&good.replace("\tsecret", "\tsecrets"), 3, "nothing else");
    refused(&good.replace("\talgorithm hmac-sha256;\n", ""), 3, "no algorithm");
    refused(&good.replace("};", "}"), 5, "';' is missing");
    refused(&good.replace("\";\n}", ";\n}"), 3, "'\"' is missing");
    refused(&good.replace("};", "/* };"), 4, "no end");
    refused(&format!("{good}{good}"), 5, "only one key");
    let two = yaml("edge", "hmac-sha256", SECRET) + "  - id: other\n";
    refused(&two, 6, "only one key");
    refused(&yaml("edge", "hmac-sha256", SECRET).replace("id:", "name:"), 3, "'id:'");
    assert!(!format!("{:?}", TsigKey::parse(&good)).contains(&SECRET[..4]));
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        name in "[a-z0-9_-]{1,20}(\\.[a-z0-9]{1,20}){0,3}",
        secret in proptest::collection::vec(any::<u8>(), TSIG_SECRET_LEN_MIN..64),
        form in any::<bool>(),
    ) {
        let text = if form { braces } else { yaml }(&name, "hmac-sha384", &BASE64.encode(&secret));
        let key = TsigKey::parse(&text).expect(&text);
        prop_assert_eq!(key, TsigKey::new(&name, Algorithm::HmacSha384, secret).expect("sound"));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(\\PC|key|[{};:\"\n/*# -]|id:|secret|algorithm){0,60}") {
        let _ = TsigKey::parse(&text);
    }
}
