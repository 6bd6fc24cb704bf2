//! Ids that follow from keys: UUIDs of version 5 (RFC 9562 §5.5).

use aws_lc_rs::digest;
use uuid::{Builder, Uuid};

/// Ours; the option `namespace` takes another one, such as that of a system that made ids in this way before.
pub(super) const NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_2c4e_9a53_5b0f_8e21_77c0_4d3a_b19c);

/// The id of a key's record; the next generation is for a record that comes after a deleted one.
pub(super) fn of(namespace: Uuid, module: &str, key: &str, generation: u32) -> String {
    let name = match generation {
        0 => format!("{module}/{key}"),
        generation => format!("{module}/{key}#{generation}"),
    };
    uuid_v5(namespace, name.as_bytes()).hyphenated().to_string()
}

fn uuid_v5(namespace: Uuid, name: &[u8]) -> Uuid {
    let digest =
        digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &[namespace.as_bytes().as_slice(), name].concat());
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(digest.as_ref()).for_each(|(byte, from)| *byte = *from);
    Builder::from_sha1_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::{NAMESPACE, of, uuid_v5};
    use uuid::Uuid;

    #[test]
    fn ids_are_those_of_the_rfc_and_follow_from_the_key_alone() {
        // RFC 9562 appendix A.4: the DNS name www.example.com.
        let made = uuid_v5(Uuid::NAMESPACE_DNS, b"www.example.com");
        assert_eq!(made.to_string(), "2ed6657d-e927-568b-95e1-2665a8aea6a2");
        let id = of(NAMESPACE, "Contacts", "EXT-1", 0);
        assert_eq!(id, of(NAMESPACE, "Contacts", "EXT-1", 0));
        for other in [
            of(NAMESPACE, "Contacts", "EXT-2", 0),
            of(NAMESPACE, "Accounts", "EXT-1", 0),
            of(NAMESPACE, "Contacts", "EXT-1", 1),
        ] {
            assert_ne!(id, other);
        }
    }
}
