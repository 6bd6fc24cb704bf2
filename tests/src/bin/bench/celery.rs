//! The same notifications through Celery with a Redis that syncs each write (`appendfsync always`), beside our own rate.
//!
//! `tests/bench` installs both and names the interpreter in `PASSERELLE_BENCH_PYTHON`.

use crate::{
    Effort, baseline,
    line::{Line, Target},
    load::{PAYLOAD, Site},
};
use passerelle_tests::{App, PATIENCE, Process, free_port, run, until};
use serde_json::json;
use std::{fs, net::TcpStream, path::Path, process::Command};

/// Our clients, and the most tasks that Celery has in hand.
const CLIENTS: usize = 64;

/// A task that does what `notify` does; acknowledged after it ran, as a job is; its result is stored and waited for.
const TASKS: &str = r#"
import os, sys, time, urllib.request
from celery import Celery

redis = os.environ["REDIS_URL"]
app = Celery("tasks", broker=redis, backend=redis)
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=4, broker_connection_retry_on_startup=True)

@app.task(name="notify")
def notify(url, payload):
    request = urllib.request.Request(url, data=payload.encode(), method="POST",
                                     headers={"content-type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return answer.status

def run(url, payload, count):
    start = time.monotonic()
    results = [notify.delay(url, payload) for _ in range(count)]
    for result in results:
        assert result.get(timeout=300) == 200
    return count / (time.monotonic() - start)

if __name__ == "__main__":
    url, payload, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    run(url, payload, 64)
    print(run(url, payload, count))
"#;

/// Measures in turns on the same machine; nothing if Celery is not installed.
pub async fn measure(effort: Effort) -> Vec<Line> {
    let Some(python) = std::env::var_os("PASSERELLE_BENCH_PYTHON") else {
        eprintln!(
            "celery: left out, since PASSERELLE_BENCH_PYTHON names no Python with celery[redis]; tests/bench installs it"
        );
        return Vec::new();
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let theirs = celery(Path::new(&python), folder.path(), effort.repetitions).await;
    let site = Site::start(1, 2 * CLIENTS).await;
    site.rate(CLIENTS, CLIENTS * 4).await;
    let ours = site.rate(CLIENTS, effort.repetitions * 4).await;
    let commits = baseline::sqlite_commits(site.hub.data(), effort.repetitions);
    vec![Line {
        name: "durable_jobs_per_s_beside_celery".to_owned(),
        value: ours,
        baseline: ("celery_redis_appendfsync_always_per_s".to_owned(), theirs),
        target: Some((Target::AtLeast(10.0 * theirs), "10 × Celery with appendfsync always".to_owned())),
        more: json!({"sqlite_plain_full_commits_per_s": commits.plain, "sqlite_wal_full_commits_per_s": commits.wal}),
    }]
}

async fn celery(python: &Path, folder: &Path, tasks: usize) -> f64 {
    let app = App::forgetful().await;
    let port = free_port();
    let _redis = Process::spawn(
        "redis-server",
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--appendonly", "yes"])
            .args(["--appendfsync", "always", "--save", "", "--dir"])
            .arg(folder),
        &folder.join("redis.log"),
    );
    until("redis to listen", PATIENCE, async || TcpStream::connect(("127.0.0.1", port)).ok()).await;
    fs::write(folder.join("tasks.py"), TASKS).expect("the tasks");
    let redis = format!("redis://127.0.0.1:{port}/0");
    let worker = Process::spawn(
        "the Celery worker",
        Command::new(python)
            .args(["-m", "celery", "-A", "tasks", "worker", "--concurrency", "8", "--loglevel", "INFO"])
            .args(["--without-gossip", "--without-mingle"])
            .current_dir(folder)
            .env("REDIS_URL", &redis),
        &folder.join("worker.log"),
    );
    worker.logged(" ready.", PATIENCE).await;
    let (python, tasks) = (python.to_owned(), tasks.to_string());
    let (folder, url) = (folder.to_owned(), format!("{}orders/42/validated", app.url));
    let output = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(python);
        run(command.arg("tasks.py").args([&url, PAYLOAD, &tasks]).current_dir(folder).env("REDIS_URL", redis))
    })
    .await
    .expect("the Celery client");
    assert!(output.status.success(), "celery: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("tasks a second")
}
