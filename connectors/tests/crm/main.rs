//! What every dialect of the `crm` connector must pass, against a server: every case over every place.
//!
//! A new place is one implementation of [`place::Server`] and one line in the list below. One server serves all cases of
//! a place, one after the other, each with keys of its own.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod cases;
#[path = "../crm_servers/mod.rs"]
#[expect(dead_code, reason = "the tests of the products' own traps use the rest")]
mod crm_servers;
#[path = "../support/full.rs"]
mod full;
mod hostile;
mod keys;
mod lists;
mod odata;
mod pages;
mod place;
#[path = "../support/port.rs"]
mod port;
mod products;
mod rest;
#[path = "../support/rest_server.rs"]
mod rest_server;
mod serve;
mod settings;

macro_rules! places {
    ($($name:ident = $make:expr;)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                cases::all(&mut $make).await;
            }
        )+
    };
}

places! {
    rest_with_unique_keys_and_etags = rest::place("contacts/");
    rest_with_nothing_to_hold_on_to = rest::place("people/");
    odoo_by_json_rpc = products::odoo(18);
    odoo_by_json_2 = products::odoo(19);
    espocrm_by_key = products::espocrm(false);
    espocrm_signed_and_with_versions = products::espocrm(true);
    dolibarr = products::dolibarr();
    suitecrm = products::suitecrm();
}
