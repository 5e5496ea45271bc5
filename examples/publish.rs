//! Publishes the lines of standard input: `cargo run --example publish TOPIC < FILE`.

use std::error::Error;

use dunlin::client::{Client, Profile, Record};
use tokio::io::{AsyncBufReadExt as _, BufReader};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let topic = std::env::args().nth(1).ok_or("which topic?")?.parse()?;
    let client = Client::connect(&Profile::discover(None)?).await?;
    let publisher = client.publisher(&topic).open().await?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        // This waits for room alone. The ack is waited for by `close`, which returns the first error.
        drop(publisher.send(Record::new(line)).await?);
    }
    publisher.close().await?;
    client.close().await;
    Ok(())
}
