//! What is shipped to be deployed: each agent's configuration loads as it stands, and the Kubernetes manifests fit their
//! schemas, each other, and the programs.
#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use passerelle_tests::{binary, run};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A configuration folder as the container has it: what is mapped in beside it lies in one folder here.
fn mapped(files: &[(&str, String)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let place = |path: &str| dir.path().join(path.trim_start_matches('/'));
    for path in [
        "/bootstrap/enrolment-token",
        "/run/secrets/enrolment_token",
        "/run/secrets/orders_token",
        "/run/secrets/sftp_key",
        "/config/secrets/enrolment-token",
        "/config/secrets/orders-token",
    ] {
        fs::create_dir_all(place(path).parent().unwrap()).unwrap();
        fs::write(place(path), "a secret").unwrap();
    }
    let certificate = rcgen::generate_simple_self_signed(vec!["hub".to_owned()]).unwrap().cert.pem();
    for path in ["/bootstrap/ca.pem", "/run/secrets/hub_ca"] {
        fs::write(place(path), &certificate).unwrap();
    }
    let known = "files ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAodvf6eJZKUjukiYT7YyfGlBI88rWadav8FxJ1LTt2X\n";
    for path in ["/sftp-keys/known_hosts", "/config/known_hosts"] {
        fs::create_dir_all(place(path).parent().unwrap()).unwrap();
        fs::write(place(path), known).unwrap();
    }
    for (name, text) in files {
        let path = dir.path().join("config").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut text = text.clone();
        for outside in ["/bootstrap/", "/run/secrets/", "/sftp-keys/", "/state", "/logs"] {
            text = text.replace(&format!("\"{outside}"), &format!("\"{}{outside}", dir.path().display()));
        }
        fs::write(path, text).unwrap();
    }
    dir
}

/// `policy explain` reads all of it, as a start would, and asks nobody.
fn explained(files: &[(&str, String)]) -> String {
    let dir = mapped(files);
    let mut command = Command::new(binary("passerelle-agent"));
    command.arg("--config").arg(dir.path().join("config")).args(["policy", "explain"]);
    let output = run(command.env("SAMPLE_SFTP_PASSWORD", "x").env("SAMPLE_APP_TOKEN", "x"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{files:?}\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn every_configuration_that_is_shipped_loads_and_allows_what_it_says() {
    let read = |path: &str| fs::read_to_string(root().join("deploy").join(path)).unwrap();
    for (agent, resources, allows) in [
        ("compose/agent/agent.toml", None, &[][..]),
        (
            "compose/dev/agent.toml",
            Some("compose/dev/resources.d/samples.toml"),
            &["accounting", "orders-app"],
        ),
        ("compose/prod/agent.toml", Some("compose/prod/resources.d/accounting.toml"), &["accounting"]),
        ("swarm/agent.toml", Some("swarm/resources.toml"), &["orders-app"]),
    ] {
        let mut files = vec![("agent.toml", read(agent))];
        files.extend(resources.map(|path| ("resources.d/resources.toml", read(path))));
        let said = explained(&files);
        for resource in allows {
            assert!(said.contains(resource), "{agent}: {said}");
        }
    }
}

/// The documents of the YAML files of `deploy/kubernetes`, with the files they come from; each fits the schema of its kind.
fn manifests() -> Vec<(String, Value)> {
    let script = "
import glob, json, sys, yaml, kubernetes_validate
found = []
for path in sorted(glob.glob(sys.argv[1] + '/*.yaml')):
    for document in yaml.safe_load_all(open(path)):
        if document['kind'] != 'Kustomization':
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        found.append([path.rsplit('/', 1)[1], document])
print(json.dumps(found))
";
    let python = root().join("target/test-kubernetes/bin/python3");
    assert!(python.exists(), "{} is not there: `bash tests/run` makes it", python.display());
    let output = run(Command::new(python).args(["-c", script]).arg(root().join("deploy/kubernetes")));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The string at a place, as `/metadata/name`.
fn text<'a>(value: &'a Value, at: &str) -> &'a str {
    value.pointer(at).and_then(Value::as_str).unwrap_or_else(|| panic!("no text at {at} in {value:#}"))
}

fn list<'a>(value: &'a Value, at: &str) -> &'a [Value] {
    value.pointer(at).and_then(Value::as_array).unwrap_or_else(|| panic!("no list at {at} in {value:#}"))
}

#[test]
fn the_kubernetes_manifests_fit_their_schemas_each_other_and_the_programs() {
    let all = manifests();
    let of = |kind: &str| {
        let found: Vec<&Value> =
            all.iter().filter(|(_, one)| one["kind"] == kind).map(|(_, one)| one).collect();
        assert_eq!(found.len(), 1, "{kind}");
        found[0]
    };
    let (set, config, secret) = (of("StatefulSet"), of("ConfigMap"), of("Secret"));
    let namespace = text(of("Namespace"), "/metadata/name");
    let listed: BTreeSet<&str> =
        list(of("Kustomization"), "/resources").iter().filter_map(Value::as_str).collect();
    for (file, one) in &all {
        if one["kind"] == "Kustomization" {
            continue;
        }
        assert!(listed.contains(file.as_str()), "kustomization.yaml does not name {file}");
        if one["kind"] != "Namespace" {
            assert_eq!(text(one, "/metadata/namespace"), namespace, "{file}");
        }
    }

    // All that selects pods selects these.
    let pod = set.pointer("/spec/template").unwrap();
    let labels = pod["metadata"]["labels"].as_object().unwrap();
    for (kind, at) in [
        ("StatefulSet", "/spec/selector/matchLabels"),
        ("PodDisruptionBudget", "/spec/selector/matchLabels"),
        ("NetworkPolicy", "/spec/podSelector/matchLabels"),
        ("Service", "/spec/selector"),
    ] {
        let selector = of(kind).pointer(at).unwrap().as_object().unwrap();
        assert!(!selector.is_empty(), "{kind}");
        for (label, value) in selector {
            assert_eq!(labels.get(label), Some(value), "{kind}: {label}");
        }
    }
    assert_eq!(text(set, "/spec/serviceName"), text(of("Service"), "/metadata/name"));
    assert!(of("NetworkPolicy")["spec"]["ingress"].as_array().unwrap().is_empty());

    // Every file of the configuration folder comes from a key that is there.
    let mut files = BTreeSet::new();
    for source in list(pod, "/spec/volumes/0/projected/sources") {
        let (from, keys) = match source.get("configMap") {
            Some(from) => (from, (config, "data")),
            None => (&source["secret"], (secret, "stringData")),
        };
        assert_eq!(text(from, "/name"), text(keys.0, "/metadata/name"));
        for item in list(from, "/items") {
            assert!(keys.0[keys.1].get(text(item, "/key")).is_some(), "{item}");
            files.insert(text(item, "/path"));
        }
    }
    let volumes = list(pod, "/spec/volumes").iter().map(|volume| text(volume, "/name"));
    let claims = list(set, "/spec/volumeClaimTemplates").iter().map(|claim| text(claim, "/metadata/name"));
    let volumes: BTreeSet<&str> = volumes.chain(claims).collect();
    let container = pod.pointer("/spec/containers/0").unwrap();
    let mounts = list(container, "/volumeMounts");
    assert_eq!(mounts.iter().map(|mount| text(mount, "/name")).collect::<BTreeSet<_>>(), volumes);

    // The configuration loads, and names only files that are in the folder.
    let agent = text(config, "/data/agent.toml");
    let resources = text(config, "/data/resources.toml");
    let said =
        explained(&[("agent.toml", agent.to_owned()), ("resources.d/resources.toml", resources.to_owned())]);
    assert!(said.contains("orders-app"), "{said}");
    for reference in [agent, resources].join("\n").split("file = \"").skip(1) {
        let file = reference.split('"').next().unwrap();
        assert!(files.contains(file), "{file} is in no Secret");
    }
    let grace = agent.lines().find_map(|line| line.strip_prefix("shutdown_grace = \"")?.strip_suffix("s\""));
    let grace: u64 = grace.unwrap().parse().unwrap();
    assert!(pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap() >= grace + 10);
    assert!(
        mounts.iter().any(|mount| mount["mountPath"] == "/state") && agent.contains("state_dir = \"/state\"")
    );

    // The program has the commands of the probes; only readiness minds the hub.
    for (probe, live) in [("startupProbe", true), ("livenessProbe", true), ("readinessProbe", false)] {
        let command: Vec<&str> =
            list(container, &format!("/{probe}/exec/command")).iter().filter_map(Value::as_str).collect();
        assert_eq!(command[0], "/usr/bin/passerelle-agent");
        assert_eq!(command.contains(&"--live"), live, "{probe}");
        let output = run(Command::new(binary("passerelle-agent")).args(&command[1..]).arg("--help"));
        assert!(output.status.success(), "{command:?}");
    }
}
