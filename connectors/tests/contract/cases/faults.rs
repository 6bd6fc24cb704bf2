//! Servers that die, freeze or vanish, lines that lose an answer, strangers, and what the account may not do.

use super::failed;
use crate::{
    support::{
        Place, Recorder, call, hex, large_payload,
        line::{Cut, Line},
        payload, sink,
    },
    table::left_out,
};
use passerelle_connectors::{
    Call, Code, DynConnector, Effect, Failure, Gate, Keeper, Outcome, Produced, Verdict,
};
use serde_json::{Value, json};
use std::{
    future::Future,
    path::Path,
    pin::Pin,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

const NO_SERVER: &str = "there is no server";
/// More than any server takes before it is killed or frozen.
const LARGE: u64 = 256 << 20;
/// How long an attempt may go on that is allowed two seconds without progress, and has to clean up.
const BOUND: Duration = Duration::from_secs(30);

/// A large drop that has begun to move bytes.
async fn under_way(place: &Place, call: &Call) -> JoinHandle<Result<Outcome, Failure>> {
    let (connector, dropping) = (Arc::clone(&place.connector), call.clone());
    let (input, _) = large_payload(LARGE);
    let running = tokio::spawn(async move {
        connector.execute(&dropping, "drop", &json!({"path": "a.bin"}), Some(input), &mut sink().0).await
    });
    while call.progress.done() < 1 << 20 {
        assert!(!running.is_finished(), "the drop ended before it could be disturbed");
        tokio::task::yield_now().await;
    }
    running
}

/// The next attempt of the same job delivers, and clears away what the first could not.
async fn second_attempt_succeeds(place: &Place, first: &Call) {
    let second = Call { attempt: 2, job: first.job, ..call() };
    let (input, digest) = large_payload(5 << 20);
    let outcome = place.run(&second, "drop", &json!({"path": "a.bin"}), Some(input)).await.unwrap();
    assert_eq!(outcome.result["sha256"], hex(&digest));
    assert_eq!(std::fs::metadata(place.root.join("a.bin")).unwrap().len(), 5 << 20);
    assert_eq!(place.parts(), [""; 0]);
}

pub async fn a_server_killed_while_writing_is_a_retry(place: &mut Place) {
    if place.server().is_none() {
        return left_out(NO_SERVER);
    }
    place.drop(json!({"path": "warm.csv"}), b"x").await.unwrap();
    let first = call();
    let running = under_way(place, &first).await;
    place.server().unwrap().stop();
    failed(running.await.unwrap(), Verdict::Retry, Code::TargetUnreachable, Effect::NotApplied);
    assert!(!place.has("a.bin"));
    let result = place.drop(json!({"path": "b.csv"}), b"x").await;
    failed(result, Verdict::Retry, Code::TargetUnreachable, Effect::NotApplied);
    place.server().unwrap().restart();
    second_attempt_succeeds(place, &first).await;
}

pub async fn a_server_frozen_while_writing_ends_in_time(place: &mut Place) {
    if place.server().is_none() {
        return left_out(NO_SERVER);
    }
    // Apache makes its database of locks with its first write; killed over that, it hangs on what is left of it ever after.
    place.drop(json!({"path": "warm.csv"}), b"x").await.unwrap();
    let first = Call { timeout: Duration::from_secs(2), ..call() };
    let mut running = under_way(place, &first).await;
    place.server().unwrap().freeze();
    let since = Instant::now();
    // As the agent does, which watches the progress.
    let (mut beats, mut heard) = (first.progress.beats(), since);
    let result = loop {
        match tokio::time::timeout(Duration::from_millis(250), &mut running).await {
            Ok(ended) => break ended,
            Err(_) if first.progress.beats() != beats => {
                (beats, heard) = (first.progress.beats(), Instant::now());
            }
            Err(_) if heard.elapsed() >= first.timeout => first.cancel.cancel(),
            Err(_) => {}
        }
    };
    let took = heard.elapsed();
    place.server().unwrap().thaw();
    let failure = result.unwrap().unwrap_err();
    assert_eq!(failure.effect, Effect::NotApplied, "{failure}");
    assert!(matches!(failure.code, Code::TargetTimeout | Code::Cancelled), "{failure}");
    assert!(took < BOUND, "{took:?}");
    assert!(!place.has("a.bin"));
    // What was on its way may still arrive: a server of its own mind must have dropped it before the next attempt.
    place.server().unwrap().restart();
    second_attempt_succeeds(place, &first).await;
}

pub async fn a_half_open_line_ends_in_time(place: &mut Place) {
    let Some(server) = place.server().map(|server| server.port()) else { return left_out(NO_SERVER) };
    let line = Line::whole(server);
    let through = place.through(line.port);
    let params = json!({"path": "a.csv"});
    run(&through, &call(), "drop", &params, Some(b"1")).await.unwrap();
    line.go_half_open();
    let hasty = Call { timeout: Duration::from_secs(2), ..call() };
    let since = Instant::now();
    let result = run(&through, &hasty, "drop", &params, Some(b"2")).await;
    failed(result, Verdict::Retry, Code::TargetTimeout, Effect::NotApplied);
    assert!(since.elapsed() < BOUND, "{:?}", since.elapsed());
    assert_eq!(place.read("a.csv"), b"1");
    line.heal();
    run(&through, &call(), "drop", &params, Some(b"3")).await.unwrap();
    assert_eq!((place.read("a.csv"), place.parts()), (b"3".to_vec(), vec![]));
}

pub async fn an_effect_whose_answer_is_lost_happens_once(place: &mut Place) {
    let Some(words) = place.effect_words() else {
        return left_out("what travels is not in the clear, so that no line knows the moment");
    };
    let server = place.server().unwrap().port();
    for cut in [Cut::BeforeItIsHeard, Cut::BeforeItsAnswer] {
        for on_conflict in ["replace", "fail", "suffix"] {
            let line = Line::cut_at(server, words.rename, cut);
            let params = json!({"path": "a.csv", "on_conflict": on_conflict});
            let dropped = run(&place.through(line.port), &call(), "drop", &params, Some(b"content")).await;
            let outcome = dropped.unwrap_or_else(|e| panic!("{cut:?} {on_conflict}: {e}"));
            assert!(line.was_cut(), "{cut:?} {on_conflict}");
            assert_eq!(outcome.result["path"], "a.csv");
            assert_eq!(place.read("a.csv"), b"content");
            assert_eq!(std::fs::read_dir(&place.root).unwrap().count(), 1, "{cut:?} {on_conflict}");
            std::fs::remove_file(place.root.join("a.csv")).unwrap();
        }
        for (operation, params, at, result) in [
            ("move", json!({"from": "a.csv", "to": "b.csv"}), words.rename, json!({"path": "b.csv"})),
            ("delete", json!({"path": "a.csv"}), words.delete, json!({"deleted": true})),
        ] {
            place.write("a.csv", b"content");
            let line = Line::cut_at(server, at, cut);
            let gate = Recorder::open();
            let first = Call { gate: Arc::clone(&gate) as Arc<dyn Gate>, ..call() };
            let done = run(&place.through(line.port), &first, operation, &params, None).await;
            assert!(line.was_cut(), "{cut:?} {operation}");
            let done = match done {
                Ok(outcome) => outcome,
                // Nobody could tell: the next attempt finds out.
                Err(failure) => {
                    let told = (failure.verdict, failure.effect);
                    assert_eq!(told, (Verdict::Retry, Effect::Unknown), "{cut:?} {operation}: {failure}");
                    let next = Call { attempt: 2, prior_intent: Some(gate.last()), job: first.job, ..call() };
                    place.run(&next, operation, &params, None).await.unwrap()
                }
            };
            assert_eq!(done.result, result, "{cut:?}");
            assert!(!place.has("a.csv"), "{cut:?} {operation}");
            assert_eq!(place.has("b.csv"), operation == "move", "{cut:?}");
            drop(std::fs::remove_file(place.root.join("b.csv")));
        }
    }
}

/// A proxy that repeats requests, or a file system behind the server that does, makes servers refuse what they did.
pub async fn an_effect_that_was_done_and_refused_is_told_as_done(place: &mut Place) {
    let Some(words) = place.effect_words() else {
        return left_out("what travels is not in the clear, so that no line knows the moment");
    };
    let server = place.server().unwrap().port();
    for refusal in words.refusals {
        let refused = |at| Line::cut_at(server, at, Cut::Answered(refusal));
        for (cut, on_conflict) in [Cut::Answered(refusal), Cut::AnsweredLast(refusal)]
            .into_iter()
            .flat_map(|cut| ["replace", "fail", "suffix"].map(|on_conflict| (cut, on_conflict)))
        {
            let line = Line::cut_at(server, words.rename, cut);
            let params = json!({"path": "a.csv", "on_conflict": on_conflict});
            let dropped = run(&place.through(line.port), &call(), "drop", &params, Some(b"content")).await;
            let outcome = dropped.unwrap_or_else(|e| panic!("{cut:?} {on_conflict}: {e}"));
            assert!(line.was_cut(), "{cut:?} {on_conflict}");
            assert_eq!(outcome.result["path"], "a.csv", "{cut:?} {on_conflict}");
            assert_eq!(place.read("a.csv"), b"content");
            assert_eq!(std::fs::read_dir(&place.root).unwrap().count(), 1, "{cut:?} {on_conflict}");
            std::fs::remove_file(place.root.join("a.csv")).unwrap();
        }
        place.write("a.csv", b"content");
        for (operation, params, at, result) in [
            ("move", json!({"from": "a.csv", "to": "b.csv"}), words.rename, json!({"path": "b.csv"})),
            ("delete", json!({"path": "b.csv"}), words.delete, json!({"deleted": true})),
        ] {
            let line = refused(at);
            let done = run(&place.through(line.port), &call(), operation, &params, None).await;
            let done = done.map(|outcome| outcome.result);
            assert!(line.was_cut(), "{refusal:?} {operation}");
            match done {
                Ok(done) if operation == "move" => assert_eq!(done, result, "{refusal:?}"),
                // That it is not there may be said of a file that somebody else took away.
                Ok(_) => {}
                Err(failure) => {
                    assert_eq!(failure.effect, Effect::Unknown, "{refusal:?} {operation}: {failure}");
                }
            }
            assert!(!place.has("a.csv") && place.has("b.csv") == (operation == "move"), "{refusal:?}");
        }
        std::fs::create_dir_all(place.root.join("done")).unwrap();
        for (then, at, said) in [
            (json!("delete"), words.rename, "deleted"),
            (json!("delete"), words.delete, "deleted"),
            (json!({"move_to": "done/b.csv"}), words.rename, "moved"),
        ] {
            place.write("a.csv", b"content");
            let line = refused(at);
            let params = json!({"path": "a.csv", "then": then});
            let (output, content) = sink();
            let mut output = output.kept_by(Arc::new(Kept));
            let through = place.through(line.port);
            let fetched = through.execute(&call(), "fetch", &params, None, &mut output).await;
            let fetched = fetched.unwrap_or_else(|e| panic!("{refusal:?} {at} {then}: {e}"));
            assert!(line.was_cut(), "{refusal:?} {at} {then}");
            // Of a file that is not there any more nobody can say who took it away.
            let told = [json!(said), json!("gone")];
            assert!(
                told[..1 + usize::from(said == "deleted")].contains(&fetched.result["then"]),
                "{refusal:?} {at} {then}"
            );
            drop(output);
            assert_eq!(*content.lock().unwrap(), b"content");
            assert!(!place.has("a.csv") && place.has("done/b.csv") == (said == "moved"), "{refusal:?} {at}");
            assert_eq!(place.parts(), [""; 0], "{refusal:?} {at} {then}");
        }
        std::fs::remove_dir_all(place.root.join("done")).unwrap();
    }
}

/// Keeps every output.
struct Kept;

impl Keeper for Kept {
    fn keep<'a>(&'a self, _: &'a Produced) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        Box::pin(async { Ok(()) })
    }
}

pub async fn a_stranger_in_its_place_gets_nothing(place: &mut Place) {
    let Some(server) = place.server() else { return left_out(NO_SERVER) };
    if !server.become_another() {
        return left_out("the protocol proves nothing of the server");
    }
    server.restart();
    let result = place.drop(json!({"path": "a.csv"}), b"x").await;
    failed(result, Verdict::Permanent, Code::TargetUnreachable, Effect::NotApplied);
    assert_eq!(std::fs::read_dir(&place.root).unwrap().count(), 0);
}

/// What nobody may change, not even root.
struct Immutable<'a>(&'a Path);

impl<'a> Immutable<'a> {
    fn make(path: &'a Path) -> Option<Self> {
        let made = Command::new("chattr").arg("+i").arg(path).output();
        made.is_ok_and(|output| output.status.success()).then_some(Self(path))
    }
}

impl Drop for Immutable<'_> {
    fn drop(&mut self) {
        drop(Command::new("chattr").arg("-i").arg(self.0).status());
    }
}

pub async fn what_the_account_may_not_do_is_refused(place: &Place) {
    let closed = place.root.join("closed");
    std::fs::create_dir(&closed).unwrap();
    place.write("closed/a.csv", b"a");
    place.write("b.csv", b"b");
    let Some(immutable) = Immutable::make(&closed) else {
        return left_out("no file system here refuses anything to root");
    };
    let refused = |result: Result<Value, Failure>| {
        let verdict = match &result {
            // Some servers say only that something went wrong, and are asked again.
            Err(failure) if !place.abilities.says_why => failure.verdict,
            Ok(_) | Err(_) => Verdict::Permanent,
        };
        failed(result, verdict, Code::TargetRefused, Effect::NotApplied);
    };
    for path in ["closed/new.csv", "closed/a.csv"] {
        refused(place.drop(json!({"path": path}), b"x").await.map(|outcome| outcome.result));
    }
    refused(place.ask("delete", json!({"path": "closed/a.csv"})).await);
    refused(place.ask("move", json!({"from": "closed/a.csv", "to": "c.csv"})).await);
    refused(place.ask("move", json!({"from": "b.csv", "to": "closed/b.csv"})).await);
    // What a refused move was to replace stays.
    place.write("c.csv", b"c");
    let params = json!({"from": "closed/a.csv", "to": "c.csv", "on_conflict": "replace"});
    refused(place.ask("move", params).await);
    assert_eq!(place.read("c.csv"), b"c");
    let params = json!({"path": "closed/sub/a.csv", "create_dirs": true});
    refused(place.drop(params, b"x").await.map(|outcome| outcome.result));
    assert_eq!(place.fetch(json!({"path": "closed/a.csv"})).await.unwrap().1, b"a");
    drop(immutable);
    assert_eq!((place.read("closed/a.csv"), place.read("b.csv")), (b"a".to_vec(), b"b".to_vec()));
    assert_eq!(std::fs::read_dir(&closed).unwrap().count(), 1);
    assert_eq!(place.parts(), [""; 0]);
}

async fn run(
    connector: &Arc<dyn DynConnector>,
    call: &Call,
    operation: &str,
    params: &Value,
    content: Option<&[u8]>,
) -> Result<Outcome, Failure> {
    connector.execute(call, operation, params, content.map(payload), &mut sink().0).await
}
