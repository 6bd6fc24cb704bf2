//! `sample`: the in-house application and the sample jobs of `dev`, each as a program of its own, for containers.

use crate::{
    Failure,
    args::sample::{self as args, Sample},
    client::Client,
    dev::{
        self,
        app::{self, App},
        folder::{ACCOUNTING, Bootstrap, ORDERS},
        sample,
    },
    out::Out,
};
use std::{
    fs,
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(250);
/// A health check has to answer sooner.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) async fn run(command: Sample, out: &Out) -> Result<(), Failure> {
    match command {
        Sample::App(command) => {
            let app = App::listen(command.listen, &command.token, command.dir).await?;
            out.text(&format!("the sample in-house application is at {}\n", app.url()));
            dev::told_to_stop().await;
            Ok(())
        }
        Sample::Health(command) => health(&command).await,
        Sample::Submit(command) => submit(&command, out).await,
    }
}

async fn health(command: &args::Health) -> Result<(), Failure> {
    let unwell = |why: String| Failure::job(format!("{} is not well: {why}", command.url));
    let client = reqwest::Client::builder()
        .no_proxy()
        // Nothing here speaks TLS; the system's certificates are not even looked for.
        .tls_certs_only(std::iter::empty())
        .timeout(HEALTH_TIMEOUT)
        .build()
        .map_err(|e| Failure::usage(format!("cannot make an HTTP client: {e}")))?;
    let answer = client.get(&command.url).send().await.map_err(|e| unwell(e.without_url().to_string()))?;
    match answer.status() {
        reqwest::StatusCode::OK => Ok(()),
        status => Err(unwell(format!("it answers {status}"))),
    }
}

async fn submit(command: &args::Submit, out: &Out) -> Result<(), Failure> {
    let end = Instant::now() + Duration::from_secs(command.patience);
    let dir = command.bootstrap.display();
    let bootstrap =
        until(end, &format!("the hub to write {dir}/hub.url"), async || Bootstrap::read(&command.bootstrap))
            .await?;
    let client = Client::at(&bootstrap.url, &bootstrap.api_key, bootstrap.ca_file.as_deref())?;
    let path = format!("v1/sites/{}/resources", bootstrap.site);
    let what = format!("an agent of the site {} to announce {ACCOUNTING:?} and {ORDERS:?}", bootstrap.site);
    until(end, &what, async || {
        let resources = client.get(&path, &[]).await.ok()?;
        let names = resources.get("items")?.as_array()?.iter().filter_map(|item| item.get("name")?.as_str());
        let announced: Vec<&str> = names.collect();
        [ACCOUNTING, ORDERS].iter().all(|name| announced.contains(name)).then_some(())
    })
    .await?;
    let export = sample::export(&client, &bootstrap.site, &command.share).await?;
    let kept = |key: &str| fs::read(app::kept_as(&command.notified, key)).ok();
    let event = sample::notification(&client, &bootstrap.site, "", kept).await?;
    let deliveries = [export, event];
    if command.json {
        out.json(&dev::as_json(&bootstrap.url, &deliveries));
    } else {
        out.text(&dev::arrivals(&bootstrap.url, &deliveries));
    }
    Ok(())
}

async fn until<T>(end: Instant, what: &str, ask: impl AsyncFn() -> Option<T>) -> Result<T, Failure> {
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if Instant::now() >= end {
            return Err(Failure::hub(format!("waited in vain for {what}")));
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::{App, args, health};
    use crate::dev::app::kept_as;
    use serde_json::Value;
    use std::{fs, net::SocketAddr};

    const HERE: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

    #[tokio::test]
    async fn the_application_takes_a_notification_once_also_after_it_was_started_again() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        for _ in 0..2 {
            let app = App::listen(SocketAddr::from(HERE), "t", Some(dir.path().into())).await.unwrap();
            let post = |key: &'static str, token: &'static str, body: &'static str| {
                let url = format!("{}orders/42/validated", app.url());
                let request = client.post(url).bearer_auth(token).header("idempotency-key", key).body(body);
                async move { request.send().await.unwrap().status().as_u16() }
            };
            assert_eq!(post("k-1", "t", "first").await, 200);
            assert_eq!(post("k-1", "t", "second").await, 200);
            assert_eq!(post("k-2", "wrong", "x").await, 401);
            assert_eq!(post("../k", "t", "x").await, 400);
            assert_eq!(fs::read(kept_as(dir.path(), "k-1")).unwrap(), b"first");
            let list = client.get(format!("{}received", app.url())).bearer_auth("t").send().await.unwrap();
            let list: Value = list.json().await.unwrap();
            assert_eq!(
                (list["items"][0]["key"].as_str(), list["items"][0]["size"].as_u64()),
                (Some("k-1"), Some(5))
            );
            assert_eq!(list["items"].as_array().unwrap().len(), 1);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn health_tells_a_running_application_from_one_that_is_not() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let app = App::listen(SocketAddr::from(HERE), "t", None).await.unwrap();
        let command = |path: &str| args::Health { url: app.url().replace("api/", path) };
        health(&command("healthz")).await.unwrap();
        assert!(health(&command("nothing")).await.unwrap_err().message.contains("404"));
        assert!(health(&args::Health { url: "http://127.0.0.1:1/".into() }).await.is_err());
    }
}
