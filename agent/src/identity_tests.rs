//! The identity over restarts: what each crash within a change of key leaves is an identity that works.

use super::*;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_protocol::HubKey;

fn answer(hub: &SigningKey) -> EnrolResponse {
    EnrolResponse {
        agent: AgentId::new(1, &[7; 10]),
        tenant: "acme".parse().unwrap(),
        site: "paris".parse().unwrap(),
        application: "hub".into(),
        audience: "urn:hub".into(),
        job_keys: vec![hub.public().clone()],
        replaced: None,
        server_time: clock::now(),
    }
}

struct Folder {
    _dir: tempfile::TempDir,
    state: StateDir,
    hub: SigningKey,
    first: VerifyingKey,
}

impl Folder {
    fn enrolled() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let (hub, _) = SigningKey::generate().unwrap();
        let key = load_or_make_key(&state).unwrap();
        let first = key.0.public().clone();
        Identity::create(&state, answer(&hub), "https://hub.example.com/".into(), key).unwrap();
        Self { _dir: dir, state, hub, first }
    }

    /// What the next start reads.
    fn load(&self) -> Identity {
        Identity::load(&self.state).unwrap().unwrap()
    }

    fn keys(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.state.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut keys: Vec<String> = names.filter(|name| name.starts_with("agent-key")).collect();
        keys.sort();
        keys
    }
}

#[test]
fn the_key_survives_a_lost_answer_and_signs_tokens_that_verify() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    assert!(Identity::load(&state).unwrap().is_none());
    let first = load_or_make_key(&state).unwrap();
    let (again, _) = load_or_make_key(&state).unwrap();
    assert_eq!(first.0.public(), again.public());
    let made = Identity::create(&state, answer(&again), "https://hub.example.com/".into(), first).unwrap();
    let identity = Identity::load(&state).unwrap().unwrap();
    assert_eq!((&identity.enrolled, identity.stored()), (&made.enrolled, made.stored()));
    let bearer = identity.bearer().unwrap();
    let token: AgentToken =
        again.public().verify(AgentToken::TYP, bearer.strip_prefix("Bearer ").unwrap()).unwrap();
    assert_eq!(token.check("urn:hub", clock::unix_seconds()), Ok(()));
    state.remove(KEY_FILE).unwrap();
    let error = Identity::load(&state).unwrap_err().to_string();
    assert!(error.contains("agent-key.pk8 is missing") && error.contains("re-enrol"), "{error}");
}

#[test]
fn an_identity_of_before_keys_changed_is_read() {
    let folder = Folder::enrolled();
    let old = serde_json::json!({
        "agent": "01a16231-e700-7000-8000-0000000000a1", "tenant": "acme", "site": "paris", "application": "hub",
        "audience": "urn:hub", "job_keys": [folder.hub.public()], "hub": "https://hub.example.com/",
    });
    folder.state.write(IDENTITY_FILE, old.to_string().as_bytes()).unwrap();
    let identity = folder.load();
    assert_eq!(*identity.key().public(), folder.first);
    assert_eq!((identity.key_since(), identity.hub_keys()), (None, vec![folder.hub.public().clone()]));
}

#[test]
fn a_change_of_key_leaves_a_working_identity_wherever_it_is_cut() {
    let folder = Folder::enrolled();
    assert_eq!(folder.keys(), [KEY_FILE]);
    // Cut after the file: it has no name.
    let (lost, document) = SigningKey::generate().unwrap();
    store_key(&folder.state, &key_file(&lost), &document).unwrap();
    let identity = folder.load();
    assert_eq!((identity.key().public(), identity.has_next()), (&folder.first, false));
    assert_eq!(folder.keys(), [KEY_FILE]);
    // Cut after it has one, and again after the hub has registered it, which changes nothing here.
    let next = identity.next_key(&folder.state).unwrap();
    let identity = folder.load();
    assert_eq!(identity.key().public(), &folder.first);
    assert_eq!(
        identity.next_key(&folder.state).unwrap().public(),
        next.public(),
        "the same key is registered again"
    );
    assert_eq!(folder.keys().len(), 2);
    // Cut after the change, before the old file is gone.
    let old = folder.state.read(KEY_FILE).unwrap().unwrap();
    let before = identity.key_since().unwrap();
    identity.switch(&folder.state).unwrap();
    assert_eq!(identity.key().public(), next.public());
    folder.state.write(KEY_FILE, &old).unwrap();
    let identity = folder.load();
    assert_eq!((identity.key().public(), identity.has_next()), (next.public(), false));
    assert!(identity.key_since().unwrap() >= before);
    assert_eq!(folder.keys(), [key_file(&next)]);
}

#[test]
fn a_key_that_the_hub_does_not_take_is_dropped() {
    let folder = Folder::enrolled();
    let identity = folder.load();
    let refused = identity.next_key(&folder.state).unwrap();
    identity.drop_next(&folder.state).unwrap();
    assert_eq!((folder.keys(), identity.has_next()), (vec![KEY_FILE.to_owned()], false));
    assert_ne!(identity.next_key(&folder.state).unwrap().public(), refused.public());
    assert_eq!(*folder.load().key().public(), folder.first);
}

#[test]
fn the_hubs_next_key_is_kept_over_a_restart_and_a_forged_one_is_not() {
    let folder = Folder::enrolled();
    let (next, _) = SigningKey::generate().unwrap();
    let (stranger, _) = SigningKey::generate().unwrap();
    let said = |by: &SigningKey, key: &SigningKey| {
        let iat = clock::unix_seconds();
        HubKey { aud: "urn:hub".into(), public_key: key.public().clone(), iat }.sign(by).unwrap()
    };
    let identity = folder.load();
    let followed =
        identity.follow(&folder.state, &[said(&stranger, &stranger), said(&folder.hub, &next), "x".into()]);
    assert_eq!((followed.taken, followed.refused.len()), (vec![next.public().id().clone()], 2));
    assert_eq!(followed.unstored, None);
    let again = folder.load();
    assert_eq!(again.hub_key_names(), [next.public().id().clone()]);
    assert_eq!(again.hub_keys(), [next.public().clone(), folder.hub.public().clone()]);
}

#[test]
fn a_public_key_is_read_from_pem() {
    let (key, _) = SigningKey::generate().unwrap();
    let mut der = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    der.extend_from_slice(key.public().bytes());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(&der));
    assert_eq!(public_key_from_pem(pem.as_bytes()).unwrap(), *key.public());
    assert!(public_key_from_pem(b"nothing").is_err());
    let rsa =
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode([0x30, 0x00]));
    assert_eq!(public_key_from_pem(rsa.as_bytes()).unwrap_err(), "not an Ed25519 public key");
}

#[test]
fn a_key_that_a_re_enrol_left_behind_goes_once_it_is_the_agents_own() {
    let folder = Folder::enrolled();
    let (waiting, _) = load_or_make(&folder.state, PENDING_FILE).unwrap();
    folder.load();
    assert!(folder.state.read(PENDING_FILE).unwrap().is_some(), "its answer may have been lost");
    // Cut off between the new identity and the end of the command.
    let document = folder.state.read(PENDING_FILE).unwrap().unwrap();
    let file = key_file(&waiting);
    store_key(&folder.state, &file, &document).unwrap();
    Identity::create(&folder.state, answer(&folder.hub), "https://hub.example.com/".into(), (waiting, file))
        .unwrap();
    folder.load();
    assert_eq!(folder.state.read(PENDING_FILE).unwrap(), None);
}

#[test]
fn an_identity_is_told_in_the_audit_until_it_is_known_to_be() {
    let folder = Folder::enrolled();
    assert!(folder.load().is_untold() && folder.load().is_untold());
    folder.load().told(&folder.state).unwrap();
    assert!(!folder.load().is_untold());
}

#[test]
fn a_key_that_changes_while_it_is_looked_at_is_not_missing() {
    let folder = Folder::enrolled();
    let running = folder.load();
    let look = StateDir::look(folder.state.path());
    let mut changes = 0;
    let looked = Identity::read_by(folder.state.path(), |name| {
        // Named, and gone before it is read, once.
        if name.starts_with("agent-key") && changes == 0 {
            changes += 1;
            running.next_key(&folder.state).unwrap();
            running.switch(&folder.state).unwrap();
        }
        look.read(name)
    });
    assert_eq!(looked.unwrap().unwrap().key().public(), running.key().public());
    assert_ne!(running.key().public(), &folder.first);
    // One that stays away is missing.
    std::fs::remove_file(folder.state.path().join(&folder.keys()[0])).unwrap();
    let error = Identity::load(&look).unwrap_err().to_string();
    assert!(error.contains("is missing"), "{error}");
}
