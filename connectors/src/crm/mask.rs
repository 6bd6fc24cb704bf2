//! Personal data in failures: a target's words, and the detail for the local log, may repeat what a job wrote. The values of
//! fields that the operator declared `masked` are taken out of both.

use super::params::{Pair, Params, Which};
use crate::{
    Failure,
    hiding::{self, Needle},
};

/// Shorter values are part of ordinary words, and tell nothing of anybody.
const LEAST: usize = 3;

/// The values of masked fields that a job wrote.
pub(super) fn values(params: &Params<'_>) -> Vec<Needle> {
    let of = |pairs: &[Pair<'_>]| -> Vec<Needle> {
        let texts = pairs.iter().filter(|(field, _)| field.masked).filter_map(|(_, value)| value.as_str());
        texts.map(str::trim).filter(|text| text.chars().count() >= LEAST).map(Needle::new).collect()
    };
    let of_which = |which: &Which<'_>| match which {
        Which::Key(pair) => of(std::slice::from_ref(pair)),
        Which::Id(_) => Vec::new(),
    };
    match params {
        Params::Upsert { key, fields, .. } => {
            of(std::slice::from_ref(key)).into_iter().chain(of(fields)).collect()
        }
        Params::Find { filter, .. } => of(filter),
        Params::Get { which, .. } | Params::Delete { which, .. } => of_which(which),
        Params::Changes { .. } | Params::Call { .. } => Vec::new(),
    }
}

/// The failure without them.
pub(super) fn without(mut failure: Failure, values: &[Needle]) -> Failure {
    failure.message = hiding::without(&failure.message, values, "[masked]");
    failure.detail = failure.detail.map(|detail| hiding::without(&detail, values, "[masked]"));
    failure
}

/// The failure without the resource's own host in its public sentence. A host of one word is left: it may be any word.
pub(super) fn without_host(mut failure: Failure, host: Option<&str>) -> Failure {
    if let Some(host) = host.filter(|host| host.contains(['.', ':'])) {
        failure.message = failure.message.replace(host, "the target");
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::{without, without_host};
    use crate::{Code, Failure, hiding::Needle};

    #[test]
    fn masked_values_leave_a_failure() {
        let failure =
            Failure::permanent(Code::InvalidParams, "bob@example.com is taken").detail("bob@example.com, 7");
        let failure = without(failure, &[Needle::new("bob@example.com")]);
        assert_eq!(
            (failure.message.as_str(), failure.detail.as_deref()),
            ("[masked] is taken", Some("[masked], 7"))
        );
    }

    #[test]
    fn the_resources_own_host_leaves_the_public_sentence() {
        let failure = Failure::permanent(Code::InvalidParams, "no mailbox at crm.intra").detail("crm.intra");
        let failure = without_host(failure, Some("crm.intra"));
        assert_eq!(
            (failure.message.as_str(), failure.detail.as_deref()),
            ("no mailbox at the target", Some("crm.intra"))
        );
        let failure = Failure::permanent(Code::InvalidParams, "the crm connector");
        assert_eq!(without_host(failure, Some("crm")).message, "the crm connector");
    }
}
