//! What subscribers are told of runs, in the vendor's shapes.

use super::keys;
use crate::{
    receiver::{self, Receiver, quick},
    support::eventually,
};
use serde_json::{Value, json};

#[tokio::test]
async fn runs_are_told_to_subscribers_in_the_vendors_shapes() {
    let hub = receiver::hub(quick(), None).await;
    let endpoint = Receiver::start().await;
    endpoint.answers([500]);
    let kinds = ["MediationCreation", "MediationTerminee", "MediationTermineeOk", "MediationTermineeErr"];
    hub.post("/v1/subscriptions", &json!({"url": endpoint.url, "kinds": kinds})).await.expect(201);
    let definition = json!({
        "name": "export", "label": "Export comptable", "trigger": {"kind": "manual"},
        "steps": [{
            "name": "drop", "kind": "job", "site": "paris", "resource": "compta", "operation": "drop",
            "params": {"path": "a.csv"}, "payload": "x",
        }],
    });
    let easy = json!({"name": "easy", "label": "Facile", "trigger": {"kind": "manual"}});
    let body = json!({"definitions": [definition, easy]});
    hub.post("/v1/mediations/definitions", &body).await.expect(200);
    let flows = json!({"flows": [{"label": "in.csv", "payload": {"text": "x"}}]});
    let started = hub.post("/v1/mediations/definitions/easy/run", &flows).await.expect(201).json();
    let came = endpoint.wait_for(4).await;
    let taken: Vec<&receiver::Received> = came.iter().filter(|delivery| delivery.answered == 200).collect();
    let told: Vec<Value> = taken.iter().map(|delivery| delivery.json()["EventKind"].clone()).collect();
    assert_eq!(told, ["MediationCreation", "MediationTerminee", "MediationTermineeOk"]);
    for delivery in &taken {
        let body = delivery.json();
        assert_eq!(body["EventCategory"], "e/rp");
        let data = &body["Data"];
        let all =
            ["DateCreation", "Definition", "DerniersMessages", "EtatCode", "EtatLibelle", "Flux", "Guid"];
        assert_eq!(keys(data), all);
        assert_eq!(keys(&data["Definition"]), ["Guid", "Libelle", "StandardGuid"]);
        assert_eq!((&data["Guid"], &data["Definition"]["Libelle"]), (&started["guid"], &json!("Facile")));
        assert_eq!(keys(&data["Flux"][0]), ["EstTraite", "Guid", "Libelle", "Sens"]);
        assert_eq!(
            (&data["Flux"][0]["Sens"], &data["Flux"][0]["Libelle"]),
            (&json!("Entree"), &json!("in.csv"))
        );
    }
    let last = taken[2].json();
    assert_eq!(
        (&last["Data"]["EtatCode"], &last["Data"]["EtatLibelle"]),
        (&json!("succeeded"), &json!("Terminée"))
    );

    let started = hub.post("/v1/mediations/definitions/export/run", &json!({})).await.expect(201).json();
    eventually(|| async {
        let jobs = hub.get("/v1/jobs?state=queued").await.expect(200).json();
        let id = jobs["items"][0]["id"].as_str()?.to_owned();
        Some(hub.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).await.status)
    })
    .await;
    let came = endpoint.wait_for(7).await;
    let of_run: Vec<Value> = came[4..].iter().map(receiver::Received::json).collect();
    let told: Vec<&Value> = of_run.iter().map(|body| &body["EventKind"]).collect();
    assert_eq!(json!(told), json!(["MediationCreation", "MediationTerminee", "MediationTermineeErr"]));
    assert_eq!(of_run[2]["Data"]["Guid"], started["guid"]);
    let message = of_run[2]["Data"]["DerniersMessages"].as_array().unwrap().last().unwrap();
    assert_eq!(message["Kind"], 1, "{message}");
    hub.end().await;
}
