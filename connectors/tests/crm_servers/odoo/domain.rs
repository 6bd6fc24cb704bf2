//! Which rows a domain holds of, and which of two values comes first.

use super::{super::parse_stamp, Raised};
use serde_json::{Value, json};
use std::cmp::Ordering as Order;

pub(super) fn compare(a: &Value, b: &Value) -> Order {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ => a.as_str().unwrap_or("").cmp(b.as_str().unwrap_or("")),
    }
}

/// A domain: terms joined by `&` unless a prefix operator says otherwise.
pub(super) fn holds(domain: &Value, row: &Value) -> Result<bool, Raised> {
    let mut stack: Vec<bool> = Vec::new();
    for term in domain.as_array().into_iter().flatten().rev() {
        match term.as_str() {
            Some(operator @ ("&" | "|")) => {
                let (a, b) = (stack.pop().unwrap_or(true), stack.pop().unwrap_or(true));
                stack.push(if operator == "&" { a && b } else { a || b });
            }
            Some("!") => {
                let a = stack.pop().unwrap_or(true);
                stack.push(!a);
            }
            _ => stack.push(term_holds(term, row)?),
        }
    }
    Ok(stack.into_iter().all(|holds| holds))
}

fn term_holds(term: &Value, row: &Value) -> Result<bool, Raised> {
    let (name, operator, want) = (term[0].as_str().unwrap_or(""), term[1].as_str().unwrap_or(""), &term[2]);
    let Some(have) = row.get(name) else {
        return Err(("builtins.ValueError", format!("Invalid field res.partner.{name} in leaf ('{name}')")));
    };
    let have = have.as_array().map_or(have, |pair| &pair[0]);
    let want = if name.ends_with("_date") {
        want.as_str().and_then(parse_stamp).map_or(Value::Null, |micros| json!(micros))
    } else {
        want.clone()
    };
    Ok(match operator {
        "=" => *have == want || compare(have, &want).is_eq() && have.is_number(),
        "!=" => *have != want,
        ">" => compare(have, &want).is_gt(),
        ">=" => compare(have, &want).is_ge(),
        "<" => compare(have, &want).is_lt(),
        "<=" => compare(have, &want).is_le(),
        "in" => want.as_array().is_some_and(|list| list.contains(have)),
        other => return Err(("builtins.ValueError", format!("Invalid operator '{other}'"))),
    })
}
