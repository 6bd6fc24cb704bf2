//! What operators may write, and what they are told when it is wrong.

use crate::place::build;

fn refused(settings: &str, words: &[&str]) {
    let base = tempfile::tempdir().unwrap();
    let Err(message) = build(base.path(), &format!("connector = \"crm\"\n{settings}")) else {
        panic!("should be refused: {settings}");
    };
    for word in words {
        assert!(message.contains(word), "{word:?} is not in:\n{message}");
    }
}

const CONTACT: &str =
    "[resources.crm.entities.contact]\ntarget = \"contacts/\"\nfields = { email = \"email\" }\n";

#[test]
fn wrong_settings_are_refused_with_what_is_right() {
    refused("url = \"http://h/\"", &["resources.crm.dialect: missing"]);
    refused(
        "dialect = \"rets\"\nurl = \"http://h/\"",
        &["resources.crm.dialect: unknown dialect \"rets\"; there are rest"],
    );
    let rest = |more: &str| format!("dialect = \"rest\"\nurl = \"http://127.0.0.1/\"\n{more}\n{CONTACT}");
    refused("dialect = \"rest\"\nurl = \"http://h/\"", &["resources.crm.entities: missing"]);
    refused(
        "dialect = \"rest\"\nurl = \"ftp://h/\"\n",
        &["resources.crm.url: expected a URL with https:// or http://"],
    );
    refused(
        "dialect = \"rest\"\nurl = \"http://169.254.169.254/\"\n",
        &["resources.crm.url", "always blocked"],
    );
    refused(
        &rest("auth = { kind = \"hmac\", key = \"k\", secret = { env = \"S\" } }"),
        &["auth.kind: dialect \"rest\" takes auth of kind basic or bearer or api_key or oauth2"],
    );
    refused(
        &rest("auth = { kind = \"bearer\" }"),
        &["resources.crm.auth: kind \"bearer\" needs the key token"],
    );
    refused(
        &rest("auth = { kind = \"basic\", username = \"u\", password = \"geheim\" }"),
        &["a secret is never written here"],
    );
    refused(&rest("options = { database = \"x\" }"), &["options.database: dialect \"rest\" has no options"]);
    refused(&rest("max_response = \"0B\""), &["resources.crm.max_response"]);
    refused(
        &rest("auth = { kind = \"bearer\", token = { env = \"NOT_SET_ANYWHERE\" } }"),
        &["auth.token: ", "NOT_SET_ANYWHERE"],
    );
    let contact = |more: &str| format!("dialect = \"rest\"\nurl = \"http://127.0.0.1/\"\n{CONTACT}{more}");
    refused(&contact("key = [\"guid\"]"), &["entities.contact.key: \"guid\" is not one of its fields"]);
    refused(
        &contact("masked = [\"phone\"]"),
        &["entities.contact.masked: \"phone\" is not one of its fields"],
    );
    refused(
        &contact("types = { email = \"string\" }"),
        &["entities.contact.types.email: unknown type \"string\"; there are text, integer"],
    );
    refused(&contact("feilds = {}"), &["entities.contact.feilds: unknown key; did you mean \"fields\"?"]);
    refused(
        &contact("rest = { paging = \"pages\" }"),
        &["entities.contact.rest.paging: unknown kind \"pages\""],
    );
    refused(&contact("rest = { since_param = \"since\" }"), &["entities.contact.rest.modified: missing"]);
    refused(&contact("rest = { item = \"contacts/7\" }"), &["entities.contact.rest.item: must contain {id}"]);
    refused(
        &contact("[resources.crm.entities.Big]\ntarget = \"x\"\nfields = { a = \"a\" }"),
        &["entities.Big: not an entity's name"],
    );
    refused(
        &contact("[resources.crm.calls.greet]\nmethod = \"POST\""),
        &["calls.greet: method and path are needed"],
    );
    refused(
        &contact("[resources.crm.calls.greet]\nmethod = \"HEAD\"\npath = \"x\""),
        &["calls.greet.method: expected GET"],
    );
}
