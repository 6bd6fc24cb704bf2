//! Text into names, literals and signs.

use super::Error;
use serde_json::{Number, Value};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Name(String),
    Literal(Value),
    Sign(&'static str),
    End,
}

/// Longer signs first.
const SIGNS: [&str; 26] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "-", "+", "*", "/", "%", "?", ":", ".", ",", "(", ")",
    "[", "]", "{", "}", "&", "|",
];

pub(super) fn tokens(source: &str) -> Result<Vec<(usize, Token)>, Error> {
    let chars: Vec<char> = source.chars().collect();
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(&c) = chars.get(at) {
        let column = at + 1;
        let rest = chars.get(at..).unwrap_or_default();
        let next = rest.get(1).copied().unwrap_or(' ');
        let token = match c {
            c if c.is_whitespace() => {
                at += 1;
                continue;
            }
            '"' | '\'' => text(rest, false, column)?,
            'r' if matches!(next, '"' | '\'') => {
                let (token, taken) = text(rest.get(1..).unwrap_or_default(), true, column)?;
                (token, taken + 1)
            }
            c if c.is_ascii_digit() || (c == '.' && next.is_ascii_digit()) => number(rest, column)?,
            c if c.is_alphabetic() || c == '_' => {
                let name: String = rest.iter().take_while(|c| c.is_alphanumeric() || **c == '_').collect();
                let taken = name.chars().count();
                let token = match name.as_str() {
                    "true" => Token::Literal(Value::Bool(true)),
                    "false" => Token::Literal(Value::Bool(false)),
                    "null" => Token::Literal(Value::Null),
                    "in" => Token::Sign("in"),
                    _ => Token::Name(name),
                };
                (token, taken)
            }
            _ => {
                let sign = SIGNS.iter().find(|sign| rest.iter().take(sign.len()).copied().eq(sign.chars()));
                match sign {
                    Some(sign) if !matches!(*sign, "&" | "|") => (Token::Sign(sign), sign.len()),
                    _ if c == '=' => return Err(Error::new(column, "equality is written ==")),
                    _ => return Err(Error::new(column, "a sign that no expression has")),
                }
            }
        };
        at += token.1;
        found.push((column, token.0));
    }
    found.push((chars.len() + 1, Token::End));
    Ok(found)
}

fn text(chars: &[char], raw: bool, column: usize) -> Result<(Token, usize), Error> {
    let quote = chars.first().copied().unwrap_or('"');
    let (mut text, mut at) = (String::new(), 1);
    loop {
        let Some(&c) = chars.get(at).filter(|c| **c != '\n') else {
            return Err(Error::new(column, "the text has no closing quote"));
        };
        at += 1;
        match c {
            c if c == quote => return Ok((Token::Literal(Value::String(text)), at)),
            '\\' if !raw => {
                let escaped = chars.get(at).copied().unwrap_or(' ');
                at += 1;
                match escaped {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    '\\' | '\'' | '"' => text.push(escaped),
                    'u' => {
                        let code: String = chars.iter().skip(at).take(4).collect();
                        let code = u32::from_str_radix(&code, 16).ok().filter(|_| code.len() == 4);
                        let c = code.and_then(char::from_u32);
                        text.push(
                            c.ok_or_else(|| Error::new(column + at, "\\u takes four hexadecimal digits"))?,
                        );
                        at += 4;
                    }
                    _ => {
                        return Err(Error::new(
                            column + at - 1,
                            "an escape that is not known; patterns are written r'…'",
                        ));
                    }
                }
            }
            c => text.push(c),
        }
    }
}

fn number(chars: &[char], column: usize) -> Result<(Token, usize), Error> {
    let mut taken = 0;
    for (index, c) in chars.iter().enumerate() {
        let exponent = index > 0 && matches!(chars.get(index - 1), Some('e' | 'E'));
        if !(c.is_ascii_alphanumeric() || *c == '.' || (exponent && matches!(c, '+' | '-'))) {
            break;
        }
        taken = index + 1;
    }
    let text: String = chars.iter().take(taken).collect();
    let whole = text.strip_suffix('u').unwrap_or(&text);
    let number = match whole.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).ok().map(Number::from),
        None => whole.parse::<i64>().ok().map(Number::from),
    };
    let number = number.or_else(|| text.parse().ok().and_then(Number::from_f64));
    match number {
        Some(number) => Ok((Token::Literal(Value::Number(number)), taken)),
        None => Err(Error::new(column, "not a number")),
    }
}
