//! The hub's signing keys over one session: the agent hears of a key before it gets what that key signed.

use super::Session;
use passerelle_protocol::{SigningKey, limits::MAX_HUB_KEYS};
use std::sync::Arc;

impl Session {
    /// Tells the agent of signing keys that it does not know; the answer is the newest.
    pub(super) fn tell_keys(&mut self) -> Arc<SigningKey> {
        let keys = self.store.shared().keyring.keys();
        let newest = keys.current.public().id();
        if self.known.as_ref() != Some(newest) {
            let known = self.known.as_ref().map_or(self.trusted.as_slice(), std::slice::from_ref);
            for part in keys.after(known).unwrap_or_default().chunks(MAX_HUB_KEYS) {
                self.machine.tell_keys(part.to_vec());
            }
            self.known = Some(newest.clone());
        }
        Arc::clone(&keys.current)
    }
}
