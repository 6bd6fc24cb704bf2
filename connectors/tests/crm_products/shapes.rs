//! The stand-ins for CRM products answer in the recorded shapes, races included: what the dialects are built on.

use crate::crm_servers::{Product, Site, dolibarr, espocrm, odoo, suitecrm};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

/// Its connections are not kept: each test has a runtime of its own.
static CLIENT: std::sync::OnceLock<reqwest::Client> = std::sync::OnceLock::new();

struct Said {
    status: u16,
    reason: Option<String>,
    body: Value,
    text: String,
}

async fn ask<P: Product>(
    site: &Site<P>,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<Value>,
) -> Said {
    // Already installed by another test of this process: just as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = CLIENT
        .get_or_init(|| reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap());
    let mut request = client.request(method.parse().unwrap(), site.url(path));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let reason = answer.headers().get("x-status-reason").map(|value| value.to_str().unwrap().to_owned());
    let text = answer.text().await.unwrap();
    Said { status, reason, body: serde_json::from_str(&text).unwrap_or_default(), text }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn espocrm_drops_unknown_fields_limits_pages_and_lets_two_of_four_duplicates_through() {
    let site = Site::start(espocrm::EspoCrm::default());
    let key = [("x-api-key", espocrm::API_KEY)];
    let contact = json!({ "lastName": "Durand", "emailAddress": "d@ex.org", "cExternalId": "EXT-1" });
    let made = ask(&site, "POST", "/api/v1/Contact", &key, Some(contact.clone())).await;
    assert_eq!((made.status, &made.body["cExternalId"]), (200, &json!("EXT-1")));
    let path = format!("/api/v1/Contact/{}", made.body["id"].as_str().unwrap());

    let doubled = ask(&site, "POST", "/api/v1/Contact", &key, Some(contact.clone())).await;
    assert_eq!((doubled.status, doubled.reason.as_deref()), (409, Some("duplicate")));
    assert_eq!(doubled.body[0]["id"], made.body["id"]);

    let odd = ask(&site, "PUT", &path, &key, Some(json!({ "lastNaem": "x" }))).await;
    assert_eq!((odd.status, odd.body.get("lastNaem")), (200, None));
    let invalid = ask(&site, "PUT", &path, &key, Some(json!({ "emailAddress": "nope" }))).await;
    assert_eq!((invalid.status, invalid.text.as_str()), (400, ""));
    assert!(invalid.reason.unwrap().contains("emailAddress"));
    let large = ask(&site, "GET", "/api/v1/Contact?maxSize=1000", &key, None).await;
    assert_eq!((large.status, large.reason.unwrap().contains("200")), (403, true));
    let found = "/api/v1/Contact?where[0][type]=equals&where[0][attribute]=cExternalId&where[0][value]=EXT-1";
    assert_eq!(ask(&site, "GET", found, &key, None).await.body["total"], json!(1));

    site.product().versions.store(true, Ordering::SeqCst);
    let versioned = [key[0], ("x-version-number", "1")];
    let stale = ask(&site, "PUT", &path, &versioned, Some(json!({ "title": "CEO" }))).await;
    assert_eq!((stale.status, stale.reason.as_deref()), (409, Some("modified")));
    assert_eq!(stale.body["versionNumber"], json!(2));

    assert_eq!(ask(&site, "DELETE", &path, &key, None).await.body, json!(true));
    assert_eq!(ask(&site, "DELETE", &path, &key, None).await.status, 404);

    // Two look before either writes.
    site.product().window.hold_for(2);
    let four = futures_util::future::join_all(
        (0..4).map(|_| ask(&site, "POST", "/api/v1/Contact", &key, Some(contact.clone()))),
    );
    let through = four.await.iter().filter(|said| said.status == 200).count();
    assert!(through > 1, "the duplicate check is racy: {through} got through");

    let signed = "GET /App/user";
    let tag = aws_lc_rs::hmac::sign(
        &aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, espocrm::SECRET_KEY.as_bytes()),
        signed.as_bytes(),
    );
    let value = STANDARD.encode([format!("{}:", espocrm::API_KEY).as_bytes(), tag.as_ref()].concat());
    let user = ask(&site, "GET", "/api/v1/App/user", &[("x-hmac-authorization", value.as_str())], None).await;
    assert_eq!(user.status, 200);

    for _ in 0..11 {
        let wrong = ask(&site, "GET", "/api/v1/Contact", &[("x-api-key", "wrong")], None).await;
        assert_eq!((wrong.status, wrong.text.as_str()), (401, ""));
    }
    let good = ask(&site, "GET", "/api/v1/Contact", &key, None).await;
    assert_eq!(good.status, 403, "the good key is shut out as well");
}

fn rpc(service: &str, method: &str, args: &Value) -> Option<Value> {
    let params = json!({ "service": service, "method": method, "args": args });
    Some(json!({ "jsonrpc": "2.0", "method": "call", "id": 1, "params": params }))
}

fn execute(method: &str, args: &Value) -> Option<Value> {
    rpc("object", "execute_kw", &json!([odoo::DB, 2, odoo::API_KEY, "res.partner", method, args, {}]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odoo_fails_inside_http_200_loads_by_external_id_and_truncates_times() {
    let site = Site::start(odoo::Odoo::version(18));
    site.product().clock.hold("2026-11-21T21:05:21.302623Z");
    let login = |password: &str| rpc("common", "login", &json!([odoo::DB, odoo::LOGIN, password]));
    assert_eq!(ask(&site, "POST", "/jsonrpc", &[], login("no")).await.body["result"], json!(false));
    assert_eq!(ask(&site, "POST", "/jsonrpc", &[], login(odoo::API_KEY)).await.body["result"], json!(2));

    let line = |name: &str| execute("load", &json!([["id", "name"], [["crmx.ext_42", name]]]));
    let first = ask(&site, "POST", "/jsonrpc", &[], line("Bob")).await.body;
    let again = ask(&site, "POST", "/jsonrpc", &[], line("Bob II")).await.body;
    assert_eq!(first["result"]["ids"], again["result"]["ids"]);
    let refused = ask(&site, "POST", "/jsonrpc", &[], line("")).await;
    assert_eq!((refused.status, &refused.body["result"]["ids"]), (200, &json!(false)));

    let search = |operator: &str| {
        let domain = json!([["write_date", operator, "2026-11-21 21:05:21"]]);
        execute("search_read", &json!([domain, ["write_date"]]))
    };
    let later = ask(&site, "POST", "/jsonrpc", &[], search(">")).await.body;
    assert_eq!(later["result"][0]["write_date"], json!("2026-11-21 21:05:21"), "the same row again");
    assert_eq!(ask(&site, "POST", "/jsonrpc", &[], search("=")).await.body["result"], json!([]));
    let nope =
        ask(&site, "POST", "/jsonrpc", &[], execute("create", &json!([[{ "nope": 1, "name": "x" }]]))).await;
    assert_eq!(nope.status, 200);
    assert_eq!(nope.body["error"]["data"]["name"], json!("builtins.ValueError"));
    assert_eq!(ask(&site, "POST", "/json/2/res.partner/search", &[], Some(json!({}))).await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odoo_19_tells_by_status_and_one_of_four_loads_wins() {
    let site = Site::start(odoo::Odoo::version(19));
    let bearer = format!("bearer {}", odoo::API_KEY);
    let good = [("authorization", bearer.as_str())];
    let call = |method: &str| format!("/json/2/res.partner/{method}");
    let bad = ask(&site, "POST", &call("search"), &[("authorization", "bearer x")], Some(json!({}))).await;
    assert_eq!(bad.status, 401);
    for (method, body, status) in [
        ("create", json!({ "vals_list": [{ "email": "x" }] }), 422),
        ("create", json!({ "vals_list": [{ "name": "x", "nope": 1 }] }), 500),
        ("write", json!({ "ids": [4711], "vals": { "name": "x" } }), 404),
        ("read", json!({ "ids": [4711] }), 200),
    ] {
        assert_eq!(
            ask(&site, "POST", &call(method), &good, Some(body.clone())).await.status,
            status,
            "{body}"
        );
    }
    let line = json!({ "fields": ["id", "name"], "data": [["crmx.race", "Eve"]] });
    let load = call("load");
    site.product().window.hold_for(4);
    let four =
        futures_util::future::join_all((0..4).map(|_| ask(&site, "POST", &load, &good, Some(line.clone()))));
    let done = four.await;
    assert!(done.iter().all(|said| said.status == 200));
    assert_eq!(done.iter().filter(|said| said.body["ids"] == json!(false)).count(), 3);
    assert_eq!(site.product().partners.rows().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dolibarr_answers_bare_numbers_404_for_an_empty_page_and_sql_in_a_503() {
    let site = Site::start(dolibarr::Dolibarr::default());
    let key = [("dolapikey", dolibarr::API_KEY)];
    let base = "/api/index.php/contacts";
    assert_eq!(ask(&site, "GET", base, &[], None).await.status, 401);
    assert_eq!(ask(&site, "GET", base, &key, None).await.status, 404);
    assert_eq!(ask(&site, "POST", base, &key, Some(json!({ "firstname": "x" }))).await.status, 400);
    for _ in 0..2 {
        let made = ask(
            &site,
            "POST",
            base,
            &key,
            Some(json!({ "lastname": "Durand", "ref_ext": "EXT-1", "nope": 1 })),
        )
        .await;
        assert!(made.status == 200 && made.body.is_u64(), "{}", made.text);
    }
    let find = |value: &str| format!("{base}?sqlfilters=(t.ref_ext:%3D:'{value}')");
    let found = ask(&site, "GET", &find("EXT-1"), &key, None).await.body;
    assert_eq!(found.as_array().unwrap().len(), 2, "nothing keeps keys apart");
    assert_eq!(found[0].get("nope"), None);
    assert_eq!(
        ask(&site, "GET", &find("a:b"), &key, None).await.body.as_array().unwrap().len(),
        2,
        "cut at the colon"
    );
    let wrong = ask(&site, "GET", &format!("{base}?sqlfilters=(t.nope:%3D:'1')"), &key, None).await;
    assert_eq!((wrong.status, wrong.text.contains("SELECT")), (503, true));
    assert_eq!(ask(&site, "GET", "/api/index.php/nothing", &key, None).await.status, 501);
    assert_eq!(ask(&site, "DELETE", &format!("{base}/1"), &key, None).await.body, json!(1));
    assert_eq!(ask(&site, "DELETE", &format!("{base}/1"), &key, None).await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suitecrm_takes_our_ids_once_and_says_400_for_what_is_not_there() {
    let site = Site::start(suitecrm::SuiteCrm::default());
    let grant = json!({
        "grant_type": "client_credentials", "client_id": suitecrm::CLIENT_ID, "client_secret": suitecrm::CLIENT_SECRET,
    });
    let token = ask(&site, "POST", "/Api/access_token", &[], Some(grant)).await.body;
    let bearer = format!("Bearer {}", token["access_token"].as_str().unwrap());
    let good = [("authorization", bearer.as_str())];
    let id = "0190b3f0-0000-5000-8000-000000000001";
    let data = |attributes: &Value| {
        Some(json!({ "data": { "type": "Contacts", "id": id, "attributes": attributes } }))
    };
    let made = ask(&site, "POST", "/Api/V8/module", &good, data(&json!({ "first_name": "O'Neil" }))).await;
    assert_eq!((made.status, &made.body["data"]["attributes"]["first_name"]), (201, &json!("O&#039;Neil")));
    let again = ask(&site, "POST", "/Api/V8/module", &good, data(&json!({}))).await;
    assert_eq!((again.status, again.text.contains("already exist")), (400, true));
    assert_eq!(
        ask(&site, "PATCH", "/Api/V8/module", &good, data(&json!({ "title": "CEO" }))).await.status,
        201
    );
    assert_eq!(
        ask(&site, "PATCH", "/Api/V8/module", &good, data(&json!({ "titel": "CEO" }))).await.status,
        400
    );
    let page = "/Api/V8/module/Contacts?filter[operator]=and&filter[date_modified][gte]=2020-11-21 00:00:00&sort=id&page[size]=2&page[number]=1";
    assert_eq!(ask(&site, "GET", page, &good, None).await.body["meta"]["total-pages"], json!(1));
    let deleted = "/Api/V8/module/Contacts?filter[deleted][eq]=1";
    assert_eq!(ask(&site, "GET", deleted, &good, None).await.status, 400);
    let path = format!("/Api/V8/module/Contacts/{id}");
    assert_eq!(ask(&site, "DELETE", &path, &good, None).await.status, 200);
    assert_eq!(ask(&site, "GET", &path, &good, None).await.status, 400);
    let gone = ask(&site, "POST", "/Api/V8/module", &good, data(&json!({}))).await;
    assert_eq!(gone.status, 400, "a deleted record keeps its id");
}
