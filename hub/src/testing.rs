//! What the unit tests of store, blobs and tunnel share: a hub in a temporary folder, with a tenant and a site.

use crate::{
    clock,
    model::{NewJob, Tier},
    store::Store,
};
use passerelle_protocol::{
    AgentId, JobId, Name, SigningKey,
    http::{EnrolRequest, EnrolResponse},
};
use std::time::Duration;
use tempfile::TempDir;

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A hub's store with tenant `acme` and site `paris`.
pub(crate) struct Hub {
    pub(crate) store: Store,
    pub(crate) dir: TempDir,
}

impl Hub {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_to_serve(dir.path()).unwrap();
        store.create_tenant(name("acme"), Tier::Enterprise).await.unwrap();
        let hub = Self { store, dir };
        hub.token("paris", 1).await;
        hub
    }

    pub(crate) async fn token(&self, site: &str, uses: u32) -> String {
        let application = "orchestrator".to_owned();
        let hour = Duration::from_secs(3600);
        self.store.create_enrolment_token(name("acme"), name(site), application, hour, uses).await.unwrap().1
    }

    /// Enrols an agent at `paris`.
    pub(crate) async fn agent(&self) -> Identity {
        let token = self.token("paris", 1).await;
        let (key, _) = SigningKey::generate().unwrap();
        let request = request(&token, &key);
        let enrolled = self.store.enrol(request).await.unwrap();
        Identity { id: enrolled.agent, key, enrolled }
    }

    /// Closes the store and opens it again: a restart of the hub.
    pub(crate) async fn restart(self) -> Self {
        self.store.close().await;
        let dir = self.dir;
        drop(self.store);
        // The lock falls when the last handle is dropped: sessions that are ending may still hold one.
        let until = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            match Store::open_to_serve(dir.path()) {
                Ok(store) => return Self { store, dir },
                Err(error) => assert!(tokio::time::Instant::now() < until, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// An agent's identity.
pub(crate) struct Identity {
    pub(crate) id: AgentId,
    pub(crate) key: SigningKey,
    pub(crate) enrolled: EnrolResponse,
}

pub(crate) fn request(token: &str, key: &SigningKey) -> EnrolRequest {
    EnrolRequest {
        token: token.to_owned(),
        public_key: key.public().clone(),
        name: name("paris-1"),
        agent_version: "0.1.0".to_owned(),
        replaces: None,
    }
}

/// A notification for `orders` at `paris`, due within an hour.
pub(crate) fn job() -> NewJob {
    let created_at = clock::now();
    NewJob {
        id: JobId::from(clock::new_uuid7()),
        tenant: name("acme"),
        site: name("paris"),
        resource: name("orders"),
        operation: name("notify"),
        params: serde_json::json!({"path": "orders/7/validated"}),
        payload: None,
        deadline: created_at.checked_add(Duration::from_secs(3600)).unwrap(),
        deadline_s: 3600,
        timeout_s: 300,
        max_attempts: 5,
        order_key: None,
        on_failure: None,
        priority: 4,
        labels: Default::default(),
        idempotency: None,
        traceparent: None,
        created_at,
        envelope: None,
        event: None,
    }
}
