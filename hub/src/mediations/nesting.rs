//! How deep a template may nest, found before it is parsed.
//!
//! The language's parser and compiler, and whatever prints or drops a value, go down level by level on the stack: a template of
//! some kilobytes could end the hub. What nests a value (lists, objects, filters) and what nests the program (operators,
//! branches) is counted instead, and what could nest without any of these is not part of the language here: namespaces, which a
//! loop could fill, and recursive loops.

use minijinja::Environment;
use std::collections::BTreeSet;

/// Operators in one tag: each may stand below the one before it.
const MAX_OPERATORS: usize = 1000;
/// Branches (`elif`) of a template. Blocks inside of blocks are bounded by the language itself.
const MAX_BRANCHES: usize = 200;
/// Lists and objects that a template writes.
const MAX_LITERALS: usize = 500;
/// Filters of a template.
const MAX_FILTERS: usize = 5000;

const WORDS: [&str; 8] = ["not", "and", "or", "in", "is", "if", "else", "elif"];

/// Takes out of the language what nests without a bound, and what shows the engine instead of the run.
pub(super) fn limit(environment: &mut Environment<'static>) {
    for function in ["namespace", "debug"] {
        environment.remove_global(function);
    }
}

/// Looks at a template, or with `bare` at an expression without its braces.
///
/// # Errors
/// What there is too much of.
pub(super) fn check(source: &str, bare: bool) -> Result<(), String> {
    let (mut branches, mut literals, mut filters) = (0usize, 0usize, 0usize);
    for (tag, block) in tags(source, bare) {
        let found = count(tag);
        if found.operators > MAX_OPERATORS {
            return Err(format!("more than {MAX_OPERATORS} operators in one expression: split it"));
        }
        literals += found.literals;
        filters += found.filters;
        if literals > MAX_LITERALS {
            return Err(format!("more than {MAX_LITERALS} lists and objects"));
        }
        if filters > MAX_FILTERS {
            return Err(format!("more than {MAX_FILTERS} filters"));
        }
        if block {
            let mut words = tag.trim_matches(['-', '+']).split_whitespace();
            branches += usize::from(words.next() == Some("elif"));
            if words.last() == Some("recursive") {
                return Err("a recursive loop is not taken: write one loop inside of another".to_owned());
            }
            if branches > MAX_BRANCHES {
                return Err(format!("more than {MAX_BRANCHES} branches"));
            }
        }
    }
    Ok(())
}

/// The insides of a template's tags, and whether each is a block's (`{% … %}`); of a bare expression, all of it.
fn tags(source: &str, bare: bool) -> impl Iterator<Item = (&str, bool)> {
    let (whole, mut rest) = if bare { (Some((source, false)), "") } else { (None, source) };
    let each = std::iter::from_fn(move || {
        loop {
            let start = ["{{", "{%", "{#"].into_iter().filter_map(|start| rest.find(start)).min()?;
            let kind = rest.get(start + 1..start + 2);
            if kind == Some("#") {
                let end = rest.get(start..)?.find("#}")?;
                rest = rest.get(start + end + 2..)?;
                continue;
            }
            let block = kind == Some("%");
            let inner = rest.get(start + 2..)?;
            let end = tag_end(inner, if block { "%}" } else { "}}" });
            rest = inner.get(end..)?;
            return Some((inner.get(..end)?, block));
        }
    });
    whole.into_iter().chain(each)
}

/// What a template names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    /// What follows a `|`.
    pub(super) filters: BTreeSet<String>,
    /// What follows `is`.
    pub(super) tests: BTreeSet<String>,
    /// What it sets itself, or asks whether it is there (`is defined`, `default`).
    pub(super) own: BTreeSet<String>,
}

/// Finds what a template names, or with `bare` an expression without its braces.
pub(super) fn used(source: &str, bare: bool) -> Used {
    let mut used = Used::default();
    let mut raw = false;
    for (tag, block) in tags(source, bare) {
        let words = words(tag);
        let is_name = |word: &&String| word.starts_with(|c: char| c.is_alphabetic() || c == '_');
        if block {
            // Between `raw` and `endraw` nothing is a tag, though it may look like one.
            raw |= words.iter().any(|word| word == "raw");
            let mut set = words.iter().skip_while(|word| ["-", "+"].contains(&word.as_str()));
            if set.next().is_some_and(|word| word == "set") {
                let targets = set.take_while(|word| !["=", "|"].contains(&word.as_str()));
                used.own.extend(targets.filter(is_name).cloned());
            }
        }
        for (at, word) in words.iter().enumerate() {
            let after = |count: usize| words.get(at + count).filter(is_name);
            let before = at.checked_sub(1).and_then(|at| words.get(at)).filter(is_name);
            match word.as_str() {
                "|" => {
                    used.filters.extend(after(1).cloned());
                    if after(1).is_some_and(|name| ["default", "d"].contains(&name.as_str())) {
                        used.own.extend(before.cloned());
                    }
                }
                "is" if at > 0 && words.get(at - 1).is_some_and(|before| before != ".") => {
                    let test = if after(1).is_some_and(|word| word == "not") { after(2) } else { after(1) };
                    used.tests.extend(test.cloned());
                    if test.is_some_and(|name| ["defined", "undefined"].contains(&name.as_str())) {
                        used.own.extend(before.cloned());
                    }
                }
                _ => {}
            }
        }
    }
    if raw {
        used.filters.clear();
        used.tests.clear();
    }
    used
}

/// The names, numbers and signs of a tag, without its texts.
fn words(tag: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let (mut quote, mut escaped, mut inside) = (None, false, false);
    for c in tag.chars() {
        let joins = quote.is_none() && (c.is_alphanumeric() || c == '_');
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(mark) if c == mark => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                words.push(c.to_string());
            }
            None if joins && inside => {
                if let Some(word) = words.last_mut() {
                    word.push(c);
                }
            }
            None if c.is_whitespace() => {}
            None => words.push(c.to_string()),
        }
        inside = joins;
    }
    words
}

/// Where a tag ends, which texts in it do not do.
fn tag_end(inner: &str, end: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in inner.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(mark) if c == mark => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if inner.get(at..).is_some_and(|rest| rest.starts_with(end)) => return at,
            None => {}
        }
    }
    inner.len()
}

#[derive(Default)]
struct Found {
    operators: usize,
    literals: usize,
    filters: usize,
}

fn count(tag: &str) -> Found {
    let mut found = Found::default();
    let (mut quote, mut escaped) = (None, false);
    let mut word = String::new();
    for c in tag.chars().chain([' ']) {
        if let Some(mark) = quote {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == mark => quote = None,
                _ => {}
            }
            continue;
        }
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        found.operators += usize::from(WORDS.contains(&word.as_str()));
        word.clear();
        match c {
            '"' | '\'' => quote = Some(c),
            '[' | '{' => {
                found.literals += 1;
                found.operators += 1;
            }
            '|' => {
                found.filters += 1;
                found.operators += 1;
            }
            '+' | '-' | '*' | '/' | '%' | '~' | '.' | '<' | '>' | '=' | '!' | '(' => found.operators += 1,
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{check, used};

    #[test]
    fn filters_and_tests_are_found_where_they_are_named() {
        let source = "a | b {{ x.is | upper|fixed( 3 ) ~ '| no is no' }}{# | no #}\
                      {% if x is not defined and y is none %}{{ z is  odd }}{% endif %}{{ a|\"x\" }}";
        let found = used(source, false);
        assert_eq!(found.filters.iter().map(String::as_str).collect::<Vec<_>>(), ["fixed", "upper"]);
        assert_eq!(found.tests.iter().map(String::as_str).collect::<Vec<_>>(), ["defined", "none", "odd"]);
        assert_eq!(used("record.a|decimal(2)", true).filters.len(), 1);
        assert_eq!(used("{% raw %}{{ a | b }}{% endraw %}", false), used("", false));
        let source = "{% if a %}{%- set b, (c) = 1, d -%}{% else %}{% set e | upper %}x{% endset %}{% endif %}\
                      {{ f is not defined or g | default(h) or i.j is defined }}";
        let own = used(source, false).own;
        assert_eq!(own.iter().map(String::as_str).collect::<Vec<_>>(), ["b", "c", "e", "f", "g", "j"]);
    }

    #[test]
    fn what_nests_is_counted_where_it_counts() {
        let many = |what: &str, count: usize| what.repeat(count);
        for (good, bare) in [
            ("plain text + - * / | [ ( { not and or".repeat(500), false),
            (format!("{{{{ 'a{}' }}}}", many("+1|[", 5000)), false),
            (many("{{ a.b | xml }}\n", 4000), false),
            (format!("{{# {{{{ #}} {}", many("a | b + [ ", 2000)), false),
            (many("{% if a %}x{% else %}y{% endif %}", 3000), false),
            (format!("{{% set names = {{{}}} %}}", many("\"a\": \"b\", ", 3000)), false),
            (format!("1{}", many(" + 1", 900)), true),
        ] {
            assert_eq!(check(&good, bare), Ok(()), "{}", &good[..60]);
        }
        for (bad, bare, says) in [
            (format!("{{{{ 1{} }}}}", many("+1", 1001)), false, "operators"),
            (format!("{{{{ a{} }}}}", many(".b", 1001)), false, "operators"),
            (format!("{{{{ {} a }}}}", many("not ", 1001)), false, "operators"),
            (format!("1{}", many(" + 1", 1001)), true, "operators"),
            (format!("{{% if a %}}{}{{% endif %}}", many("{% elif b %}", 201)), false, "branches"),
            (many("{%- set x = [x] -%}", 501), false, "lists"),
            (many("{{ a | b }}", 5001), false, "filters"),
            ("{% for x in y recursive %}{% endfor %}".to_owned(), false, "recursive"),
            ("{%- for x in y recursive -%}{% endfor %}".to_owned(), false, "recursive"),
        ] {
            let error = check(&bad, bare).unwrap_err();
            assert!(error.contains(says), "{}: {error}", &bad[..20]);
        }
    }
}
