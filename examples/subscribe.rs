//! Prints all that is in a topic, and what comes: `cargo run --example subscribe TOPIC`.

use std::error::Error;

use dunlin::client::{Client, Position, Profile};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let topic = std::env::args().nth(1).ok_or("which topic?")?.parse()?;
    let client = Client::connect(&Profile::discover(None)?).await?;
    let mut subscriber = client.subscribe(&topic).from(Position::Earliest).open().await?;
    while let Some(received) = subscriber.next().await {
        let received = received?;
        let value = String::from_utf8_lossy(&received.record.value);
        #[expect(clippy::print_stdout, reason = "that is what it is for")]
        {
            println!("{}:{} {value}", received.partition, received.offset);
        }
    }
    Ok(())
}
