//! How deep a template may nest, found before it is parsed.
//!
//! The language's parser and compiler, and whatever prints or drops a value, go down level by level on the stack: a template of
//! some kilobytes could end the hub. What nests a value (lists, objects, filters) and what nests the program (operators,
//! branches) is counted instead, and what could nest without any of these is not part of the language here: namespaces, which a
//! loop could fill, and recursive loops.

use minijinja::Environment;

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
    let mut rest = source;
    loop {
        let (tag, after, block) = if bare {
            (rest, "", false)
        } else {
            let starts = ["{{", "{%", "{#"].into_iter().filter_map(|start| rest.find(start));
            let Some(start) = starts.min() else { return Ok(()) };
            if rest.get(start + 1..start + 2) == Some("#") {
                let Some(end) = rest.get(start..).and_then(|comment| comment.find("#}")) else {
                    return Ok(());
                };
                rest = rest.get(start + end + 2..).unwrap_or_default();
                continue;
            }
            let block = rest.get(start + 1..start + 2) == Some("%");
            let inner = rest.get(start + 2..).unwrap_or_default();
            let end = tag_end(inner, if block { "%}" } else { "}}" });
            (inner.get(..end).unwrap_or_default(), inner.get(end..).unwrap_or_default(), block)
        };
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
        if bare {
            return Ok(());
        }
        rest = after;
    }
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
    use super::check;

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
