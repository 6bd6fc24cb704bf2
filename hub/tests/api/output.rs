//! Outputs: inline in the report or uploaded beside the tunnel; read back whole and in ranges.

use crate::{
    agent::Agent,
    support::{Answer, Hub},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_protocol::{Outcome, OutputPayload, Sha256};
use reqwest::Method;
use serde_json::json;

fn payload(content: &[u8], inline: bool) -> OutputPayload {
    OutputPayload {
        size: content.len() as u64,
        sha256: Sha256::of(content),
        media_type: "text/csv".to_owned(),
        data: inline.then(|| STANDARD.encode(content)),
    }
}

#[tokio::test]
async fn an_output_is_read_whole_and_in_ranges() {
    let hub = Hub::start().await;
    let agent = Agent::enrol(&hub).await;
    let mut session = agent.connect(&hub).await;
    let job = hub.submit(json!({})).await;
    let path = format!("/v1/jobs/{}/output", job["id"].as_str().unwrap());
    session.succeed(json!({}), Some(payload(b"0123456789", true))).await;

    let whole = hub.get(&path).await.expect(200);
    assert_eq!(whole.body, b"0123456789");
    let etag = format!("\"{}\"", Sha256::of(b"0123456789"));
    for (header, expected) in [
        ("etag", etag.as_str()),
        ("content-type", "text/csv"),
        ("content-length", "10"),
        ("accept-ranges", "bytes"),
        ("content-disposition", "attachment"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(whole.header(header), expected, "{header}");
    }
    let with = async |headers: &[(&str, &str)]| {
        let request = hub.request(Method::GET, &path);
        Answer::of(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
    };
    let part = with(&[("range", "bytes=2-4")]).await.expect(206);
    assert_eq!((part.text().as_str(), part.header("content-range")), ("234", "bytes 2-4/10"));
    assert_eq!(with(&[("range", "bytes=-3")]).await.expect(206).text(), "789");
    assert_eq!(with(&[("range", "bytes=2-4"), ("if-range", &etag)]).await.expect(206).text(), "234");
    assert_eq!(with(&[("range", "bytes=2-4"), ("if-range", "\"x\"")]).await.expect(200).text(), "0123456789");
    assert_eq!(with(&[("range", "bytes=0-1,3-4")]).await.expect(200).text(), "0123456789");
    assert_eq!(with(&[("if-none-match", &etag)]).await.expect(304).text(), "");
    let outside = with(&[("range", "bytes=10-")]).await.expect_problem(416, "bad_request");
    assert_eq!(outside.header("content-range"), "bytes */10");
    hub.end().await;
}

#[tokio::test]
async fn a_large_output_is_uploaded_in_parts_beside_the_tunnel() {
    let hub = Hub::start().await;
    let agent = Agent::enrol(&hub).await;
    let mut session = agent.connect(&hub).await;
    let job = hub.submit(json!({})).await;
    let offer = session.offer().await;
    session.send(passerelle_protocol::Accept { job: offer.job, attempt: offer.attempt }).await;
    let content: Vec<u8> = (0..400_000_u32).map(|n| (n % 249) as u8).collect();
    let path = format!("/agent/v1/jobs/{}/attempts/{}/output", offer.job, offer.attempt);
    let digest = format!("sha-256=:{}:", STANDARD.encode(Sha256::of(&content).bytes()));
    let open = |length: &str| {
        let request = hub.anonymous(Method::POST, &path).bearer_auth(agent.bearer());
        request.header("upload-length", length.to_owned())
    };
    Answer::of(open("400000")).await.expect_problem(400, "bad_request");
    let opened = crate::support::eventually(|| async {
        let answer = Answer::of(open("400000").header("repr-digest", &digest)).await;
        // The acceptance travels on another connection than this request.
        (answer.status == 201).then_some(answer)
    })
    .await;
    assert_eq!((opened.header("location"), opened.header("upload-offset")), (path.as_str(), "0"));

    let patch = async |offset: usize, until: usize| {
        let request = hub.anonymous(Method::PATCH, &path).bearer_auth(agent.bearer());
        let request = request.header("content-type", "application/offset+octet-stream");
        Answer::of(request.header("upload-offset", offset).body(content[offset..until].to_vec())).await
    };
    assert_eq!(patch(0, 150_000).await.expect(204).header("upload-offset"), "150000");
    patch(1, 2).await.expect_problem(409, "conflict");
    let head = Answer::of(hub.anonymous(Method::HEAD, &path).bearer_auth(agent.bearer())).await.expect(200);
    assert_eq!((head.header("upload-offset"), head.header("upload-length")), ("150000", "400000"));
    patch(150_000, 400_000).await.expect(204);

    let outcome =
        Outcome::Succeeded { result: json!({}), output: Some(payload(&content, false)), receipt: None };
    session.finish(&offer, outcome).await;
    let shown = hub.get(&format!("/v1/jobs/{}", job["id"].as_str().unwrap())).await.json();
    assert_eq!(shown["state"], "succeeded", "{shown}");
    assert_eq!(shown["output"]["size"], 400_000);
    let back = hub.get(&format!("/v1/jobs/{}/output", offer.job)).await.expect(200);
    assert_eq!(back.body, content);
    hub.end().await;
}
