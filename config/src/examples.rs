//! The annotated example folder, as `passerelle-agent init` writes it.

/// Each file of `config/examples` but the resources, by its path there, with its content.
pub const EXAMPLES: &[(&str, &str)] = &[
    ("agent.toml", include_str!("../examples/agent.toml")),
    ("secrets/README.md", include_str!("../examples/secrets/README.md")),
];

/// Each file of `config/examples/resources.d`, by its name, with its content.
pub const EXAMPLE_RESOURCES: &[(&str, &str)] = &[
    ("applications.toml", include_str!("../examples/resources.d/applications.toml")),
    ("crm.toml", include_str!("../examples/resources.d/crm.toml")),
    ("files.toml", include_str!("../examples/resources.d/files.toml")),
    ("listeners.toml", include_str!("../examples/resources.d/listeners.toml")),
];

#[cfg(test)]
mod tests {
    use super::EXAMPLE_RESOURCES;
    use std::{fs, path::Path};

    #[test]
    fn no_example_of_a_resource_is_forgotten() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/resources.d");
        let mut files: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let listed: Vec<&str> = EXAMPLE_RESOURCES.iter().map(|(name, _)| *name).collect();
        assert_eq!(listed, files);
    }
}
