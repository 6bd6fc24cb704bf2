//! What the status page says, in English and in French, and which of them a browser wants.
//!
//! Sentences about what went wrong are those of the logs, in English, so that they can be searched for.

/// A language of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// The default.
    English,
    /// As the suite's operators read.
    French,
}

/// The fixed words of the page.
pub struct Words {
    pub code: &'static str,
    /// The other language: its code and its name.
    pub other: (&'static str, &'static str),
    pub agent: &'static str,
    pub version: &'static str,
    pub started: &'static str,
    pub tenant: &'static str,
    pub site: &'static str,
    pub connected: &'static str,
    pub connecting: &'static str,
    pub not_connected: &'static str,
    pub not_ready: &'static str,
    pub configuration: &'static str,
    pub needs_restart: &'static str,
    pub refused: &'static str,
    pub goes_on: &'static str,
    pub jobs: &'static str,
    pub held: &'static str,
    pub running: &'static str,
    pub unreported: &'static str,
    pub resources: &'static str,
    pub resource_columns: [&'static str; 4],
    pub nothing_allowed: &'static str,
    pub not_yet: &'static str,
    pub reachable: &'static str,
    pub triggers: &'static str,
    pub last_jobs: &'static str,
    pub job_columns: [&'static str; 6],
}

pub const ENGLISH: Words = Words {
    code: "en",
    other: ("fr", "Français"),
    agent: "Passerelle agent",
    version: "version",
    started: "started",
    tenant: "tenant",
    site: "site",
    connected: "connected since",
    connecting: "connecting",
    not_connected: "not connected",
    not_ready: "not ready",
    configuration: "configuration read at",
    needs_restart: "changed, but in effect at the next start only",
    refused: "refused",
    goes_on: "the one before goes on",
    jobs: "jobs",
    held: "held",
    running: "running",
    unreported: "not yet reported",
    resources: "Resources",
    resource_columns: ["name", "connector", "allowed", "last probe"],
    nothing_allowed: "no operations allowed",
    not_yet: "not yet",
    reachable: "ok at",
    triggers: "Triggers",
    last_jobs: "Last jobs",
    job_columns: ["at", "job", "attempt", "resource", "operation", "outcome"],
};

pub const FRENCH: Words = Words {
    code: "fr",
    other: ("en", "English"),
    agent: "Agent Passerelle",
    version: "version",
    started: "démarré le",
    tenant: "client",
    site: "site",
    connected: "connecté depuis",
    connecting: "connexion en cours",
    not_connected: "non connecté\u{a0}",
    not_ready: "pas prêt\u{a0}",
    configuration: "configuration lue le",
    needs_restart: "modifiée, mais en vigueur au prochain démarrage seulement\u{a0}",
    refused: "refusée",
    goes_on: "la précédente reste en vigueur",
    jobs: "jobs\u{a0}",
    held: "acceptés",
    running: "en cours",
    unreported: "pas encore rapportés",
    resources: "Ressources",
    resource_columns: ["nom", "connecteur", "permis", "dernier essai"],
    nothing_allowed: "aucune opération permise",
    not_yet: "pas encore",
    reachable: "joignable le",
    triggers: "Déclencheurs",
    last_jobs: "Derniers jobs",
    job_columns: ["le", "job", "tentative", "ressource", "opération", "résultat"],
};

/// The language asked for: that of `lang=` in the query, else the one that `Accept-Language` (RFC 9110 §12.5.4) prefers.
pub fn language(query: Option<&str>, accepted: Option<&str>) -> Language {
    let of = |tag: &str| match tag.split('-').next().map(str::to_ascii_lowercase).as_deref() {
        Some("en") => Some(Language::English),
        Some("fr") => Some(Language::French),
        _ => None,
    };
    let chosen =
        query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("lang="));
    if let Some(language) = chosen.and_then(of) {
        return language;
    }
    let mut best = (0.0, Language::English);
    for item in accepted.into_iter().flat_map(|accepted| accepted.split(',')) {
        let mut parts = item.split(';').map(str::trim);
        let Some(language) = parts.next().and_then(of) else { continue };
        let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(Ok(1.0), str::parse::<f32>);
        // The first of two that are liked as much.
        if let Ok(quality) = quality
            && quality > best.0
        {
            best = (quality, language);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_language_is_the_one_asked_for() {
        for (query, accepted, expected) in [
            (None, None, Language::English),
            (None, Some("fr-FR,fr;q=0.9,en-US;q=0.8,en;q=0.7"), Language::French),
            (None, Some("en-GB, fr;q=0.5"), Language::English),
            (None, Some("de, fr;q=0.3, en;q=0.9"), Language::English),
            (None, Some("fr;q=0"), Language::English),
            (None, Some("fr;q=x, ;;,,"), Language::English),
            (Some("lang=fr"), Some("en"), Language::French),
            (Some("a=b&lang=en"), Some("fr"), Language::English),
            (Some("lang=xx"), Some("fr"), Language::French),
        ] {
            assert_eq!(language(query, accepted), expected, "{query:?} {accepted:?}");
        }
    }
}
