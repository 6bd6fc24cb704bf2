//! `passerelle dev`: hub, agent, a shared folder, an in-house application and a small CRM in one process tree on loopback.
//!
//! Hub and agent are the real ones: this program executes itself again, once as each. They hold a pipe to their
//! parent and end when it goes, so nothing is left behind however it ends.

pub(crate) mod app;
mod crm;
pub(crate) mod folder;
mod part;
pub(crate) mod sample;

pub(crate) use part::{AGENT_PART, HUB_PART, part};

use crate::{Failure, args::Dev, client::Client, out::Out};
use app::App;
use crm::Crm;
use folder::{Bootstrap, Folder};
use part::Part;
use sample::Delivery;
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};
use tokio::signal::unix::{SignalKind, signal};

/// Generous: a debug build on a busy machine still starts in a fraction of it.
const START: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(25);
/// How often a staying `dev` looks whether its parts still run.
const WATCH: Duration = Duration::from_millis(500);

pub(crate) async fn run(command: Dev, out: &Out) -> Result<(), Failure> {
    if !command.listen.ip().is_loopback() {
        return Err(Failure::usage(format!("--listen {}: dev serves on loopback only", command.listen)));
    }
    let folder = Folder::new(command.dir.as_deref())?;
    let mut parts = Vec::new();
    let done = tokio::select! {
        done = Box::pin(stage(&command, &folder, &mut parts, out)) => done,
        () = told_to_stop() => match command.once {
            true => Err(Failure::job("stopped before the sample jobs had ended")),
            false => Ok(()),
        },
    };
    // The agent first, so that it can say goodbye to the hub.
    for part in parts.iter_mut().rev() {
        part.stop().await;
    }
    done
}

/// Waits for Ctrl-C or SIGTERM.
pub(crate) async fn told_to_stop() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals end the process, and its parts with it.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

async fn stage(command: &Dev, folder: &Folder, parts: &mut Vec<Part>, out: &Out) -> Result<(), Failure> {
    eprintln!("starting the hub");
    let bootstrap = start_hub(command.listen, folder, parts).await?;
    let client = Client::at(&bootstrap.url, &bootstrap.api_key, bootstrap.ca_file.as_deref())?;
    eprintln!("starting the in-house application, the sample CRM and the agent");
    let (app, crm) = (App::start().await?, Crm::start().await?);
    start_agent(folder, &bootstrap, (&app, &crm), &client, parts).await?;
    eprintln!("submitting the sample jobs");
    let context = sample::Context { client: &client, folder, app: &app, crm: &crm, site: &bootstrap.site };
    let deliveries = match sample::deliver(&context).await {
        Ok(deliveries) => deliveries,
        Err(failure) => {
            let logs: String = parts.iter().map(Part::last_words).collect();
            return Err(Failure { message: format!("{}\n{logs}", failure.message), ..failure });
        }
    };
    if command.json {
        out.json(&as_json(&bootstrap.url, &deliveries));
    } else {
        out.text(&arrivals(&bootstrap.url, &deliveries));
    }
    if command.once {
        if command.dir.is_none() {
            eprintln!("the temporary folder goes now; --dir keeps one");
        }
        return Ok(());
    }
    if !command.json {
        out.text(&invitation(&bootstrap, folder));
    }
    stay(&app, parts, out, command.json).await
}

async fn start_hub(listen: SocketAddr, folder: &Folder, parts: &mut Vec<Part>) -> Result<Bootstrap, Failure> {
    folder.forget_url()?;
    let arguments = [
        "serve".into(),
        "--bootstrap".into(),
        folder.bootstrap().into(),
        "--data".into(),
        folder.hub_data().into(),
        "--listen".into(),
        listen.to_string().into(),
    ];
    let hub = keep(parts, Part::start("hub", HUB_PART, &arguments, folder.log("hub"))?);
    let bootstrap = until(hub, "to write where it listens", async || folder.read_bootstrap()).await?;
    let client = Client::at(&bootstrap.url, &bootstrap.api_key, bootstrap.ca_file.as_deref())?;
    until(hub, "to answer", async || client.get("v1/sites", &[]).await.ok()).await?;
    Ok(bootstrap)
}

async fn start_agent(
    folder: &Folder,
    bootstrap: &Bootstrap,
    (app, crm): (&App, &Crm),
    client: &Client,
    parts: &mut Vec<Part>,
) -> Result<(), Failure> {
    folder.write_agent(bootstrap, app, crm)?;
    let arguments = ["run".into(), "--config".into(), folder.agent_config().into()];
    let agent = keep(parts, Part::start("agent", AGENT_PART, &arguments, folder.log("agent"))?);
    let path = format!("v1/sites/{}/resources", bootstrap.site);
    until(agent, "to connect and announce its resources", async || {
        let resources = client.get(&path, &[]).await.ok()?;
        let names = resources.get("items")?.as_array()?.iter().filter_map(|item| item.get("name")?.as_str());
        let announced: Vec<&str> = names.collect();
        [folder::ACCOUNTING, folder::ORDERS].iter().all(|name| announced.contains(name)).then_some(())
    })
    .await
}

fn keep(parts: &mut Vec<Part>, part: Part) -> &mut Part {
    parts.push_mut(part)
}

/// Asks again until there is an answer, the part ends, or it takes too long.
async fn until<T>(part: &mut Part, what: &str, ask: impl AsyncFn() -> Option<T>) -> Result<T, Failure> {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return Ok(answer);
            }
            part.check()?;
            tokio::time::sleep(POLL).await;
        }
    };
    let asked = tokio::time::timeout(START, asking).await;
    asked.unwrap_or_else(|_| {
        let (name, seconds) = (part.name, START.as_secs());
        Err(Failure::hub(format!("the {name} took more than {seconds} s {what}\n{}", part.last_words())))
    })
}

async fn stay(app: &App, parts: &mut [Part], out: &Out, quiet: bool) -> Result<(), Failure> {
    let mut told = app.received().len();
    loop {
        tokio::time::sleep(WATCH).await;
        for part in parts.iter_mut() {
            part.check()?;
        }
        let received = app.received();
        for notification in received.iter().skip(told) {
            if !quiet {
                out.text(&format!(
                    "the in-house application was told: POST {}, {} bytes, SHA-256 {}\n",
                    crate::render::clean(&notification.path),
                    notification.body.len(),
                    sample::sha256(&notification.body)
                ));
            }
        }
        told = received.len();
    }
}

/// What arrived where, for people.
pub(crate) fn arrivals(hub: &str, deliveries: &[Delivery]) -> String {
    let mut text = format!("\nhub        {hub}\n");
    for delivery in deliveries {
        text += &format!(
            "\n{}: {}\n  job        {}\n  arrived    {}\n  size       {} bytes\n  SHA-256    {}\n  submitted  {}\n  \
             finished   {}\n",
            delivery.title,
            delivery.state,
            delivery.job,
            delivery.place,
            delivery.size,
            delivery.sha256,
            delivery.submitted_at,
            delivery.finished_at,
        );
    }
    text
}

/// The same for programs.
pub(crate) fn as_json(hub: &str, deliveries: &[Delivery]) -> Value {
    let items: Vec<Value> = deliveries
        .iter()
        .map(|delivery| {
            json!({
                "sample": delivery.title, "job": delivery.job, "state": delivery.state, "arrived": delivery.place,
                "size": delivery.size, "sha256": delivery.sha256, "submitted_at": delivery.submitted_at,
                "finished_at": delivery.finished_at,
            })
        })
        .collect();
    json!({ "hub": hub, "deliveries": items })
}

fn invitation(bootstrap: &Bootstrap, folder: &Folder) -> String {
    let Bootstrap { url, api_key, site, ca_file } = bootstrap;
    let cacert = ca_file.as_ref().map(|file| format!("--cacert {} ", file.display())).unwrap_or_default();
    let job = json!({
        "site": site,
        "resource": folder::ACCOUNTING,
        "operation": "drop",
        "params": { "path": "2026/11/hello.txt", "create_dirs": true, "on_conflict": "replace" },
        "payload": { "text": "hello from the cloud\n" },
    });
    format!(
        "\nSubmit a job of your own; it arrives in {share}:\n\n\
         curl -sS {cacert}'{url}/v1/jobs?wait=30' -H 'Authorization: Bearer {api_key}' \
         -H 'Content-Type: application/json' -d '{job}'\n\n\
         Or with this program:\n\n\
         export PASSERELLE_URL={url} PASSERELLE_API_KEY={api_key}{ca}\n\
         passerelle jobs list\n\n\
         Ctrl-C ends it.\n",
        share = folder.share().display(),
        ca = ca_file
            .as_ref()
            .map(|file| format!(" PASSERELLE_CA_FILE={}", file.display()))
            .unwrap_or_default(),
    )
}
