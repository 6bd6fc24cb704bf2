//! The listeners: whether their addresses can be listened on. Their secrets and certificates were read with the configuration.

use super::Item;
use crate::{
    exit::Stop,
    settings::Settings,
    state::{IN_USE, StateDir},
};
use std::io::ErrorKind;
use tokio::net::TcpListener;

pub(super) async fn check(settings: &Settings) -> Vec<Item> {
    if settings.listeners.is_empty() {
        return Vec::new();
    }
    let opened = StateDir::open(&settings.state_dir());
    let runs = matches!(&opened, Err(Stop::Configuration(message)) if message.starts_with(IN_USE));
    // The lock is for the look alone.
    drop(opened);
    let mut items = Vec::new();
    for (name, listener) in &settings.listeners {
        let (link, listen) = (format!("listener {name}"), listener.config.listen);
        items.push(match TcpListener::bind(listen).await {
            Ok(_) if runs => {
                let fix =
                    "see its log and `passerelle-agent status`: the configuration may have changed just now";
                Item::warn(link, format!("{listen} is free, though an agent runs"), fix)
            }
            Ok(_) => Item::ok(link, format!("{listen} is free")),
            Err(error) if error.kind() == ErrorKind::AddrInUse && runs => {
                Item::ok(link, format!("{listen} is listened on, as it should be while the agent runs"))
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => Item::fail(
                link,
                format!("{listen} is taken by another program"),
                "choose another port, or stop that program",
            ),
            Err(error) => {
                let fix = "name an address of this machine, and a port above 1023";
                Item::fail(link, format!("{listen} cannot be listened on: {error}"), fix)
            }
        });
    }
    items
}
