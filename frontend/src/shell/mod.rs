//! Shell words: quotes, escapes, and the replacement of variables.

mod pattern;

use crate::budget::Budget;
use std::collections::{BTreeSet, HashMap};
use std::iter::Peekable;
use std::str::Chars;

/// Longest result of an expansion, in bytes.
pub(crate) const MAX_RESULT: usize = 1 << 20;
/// Deepest nesting of `${…}`.
const MAX_DEPTH: usize = 100;

/// Variables in the order in which they first came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    entries: Vec<(String, String)>,
    index: HashMap<String, usize>,
    bytes: usize,
}

impl Environment {
    /// Sets a variable; an existing one keeps its place.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        match self.index.get(name) {
            Some(&at) => {
                self.bytes -= self.entries[at].1.len();
                self.entries[at].1 = value.to_owned();
            }
            None => {
                self.bytes += name.len() + 1;
                self.index.insert(name.to_owned(), self.entries.len());
                self.entries.push((name.to_owned(), value.to_owned()));
            }
        }
        self.bytes += value.len();
    }

    /// A variable's value.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|&at| self.entries[at].1.as_str())
    }

    /// All variables.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    /// Size of all pairs, written as `name=value`.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of variables.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// All names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }
}

/// What is treated specially.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expander {
    /// The escape character.
    pub(crate) escape: char,
    /// Quotes group, but stay in the result.
    pub(crate) keep_quotes: bool,
    /// Quotes are like any other character.
    pub(crate) plain_quotes: bool,
    /// Unset variables stay as they are written.
    pub(crate) keep_unset: bool,
}

impl Expander {
    /// The language's own rules.
    pub(crate) fn new(escape: char) -> Self {
        Self { escape, keep_quotes: false, plain_quotes: false, keep_unset: false }
    }

    /// The rules for heredocs of COPY.
    pub(crate) fn heredoc() -> Self {
        Self { plain_quotes: true, ..Self::new('\\') }
    }

    /// The rules for names in the progress display.
    pub(crate) fn display(escape: char) -> Self {
        Self { keep_quotes: true, keep_unset: true, ..Self::new(escape) }
    }

    /// Expands a text, at the expense of `budget`.
    ///
    /// # Errors
    /// Quotes or braces without their partner, unknown modifiers, `${x:?}` without `x`, results over 1 MiB, a budget that is
    /// used up.
    pub(crate) fn expand(self, text: &str, env: &Environment, budget: &mut Budget) -> Result<Expanded, String> {
        let mut state = State {
            rules: self,
            raw_escapes: false,
            chars: text.chars().peekable(),
            env,
            out: Expanded::default(),
            depth: 0,
            budget,
        };
        let (whole, words) = state.until(None)?;
        state.out.text = whole;
        state.out.words = words.finish();
        Ok(state.out)
    }
}

/// The result of an expansion.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expanded {
    /// The text.
    pub(crate) text: String,
    /// The same, split at blanks that were not quoted.
    pub(crate) words: Vec<String>,
    /// Variables that were found.
    pub(crate) matched: BTreeSet<String>,
    /// Variables that were used plainly and are not set.
    pub(crate) unmatched: BTreeSet<String>,
}

/// Words being collected.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    current: String,
    quoted: bool,
}

impl Words {
    fn split(&mut self, text: &str) {
        for c in text.chars() {
            self.split_at(c);
        }
    }

    fn split_at(&mut self, c: char) {
        if c.is_whitespace() {
            self.end();
        } else {
            self.current.push(c);
        }
    }

    fn raw(&mut self, text: &str) {
        self.current.push_str(text);
        self.quoted = true;
    }

    fn end(&mut self) {
        if !self.current.is_empty() || self.quoted {
            self.done.push(std::mem::take(&mut self.current));
        }
        self.quoted = false;
    }

    fn finish(mut self) -> Vec<String> {
        self.end();
        self.done
    }
}

struct State<'a> {
    rules: Expander,
    raw_escapes: bool,
    chars: Peekable<Chars<'a>>,
    env: &'a Environment,
    out: Expanded,
    depth: usize,
    budget: &'a mut Budget,
}

impl State<'_> {
    fn grow(&mut self, result: &mut String, text: &str) -> Result<(), String> {
        self.budget.text(text.len())?;
        if result.len() + text.len() > MAX_RESULT {
            return Err(format!("the expansion has more than {MAX_RESULT} bytes"));
        }
        result.push_str(text);
        Ok(())
    }

    fn grow_char(&mut self, result: &mut String, c: char) -> Result<(), String> {
        self.grow(result, c.encode_utf8(&mut [0; 4]))
    }

    /// Up to `stop`, which is taken, or the end.
    fn until(&mut self, stop: Option<char>) -> Result<(String, Words), String> {
        let mut result = String::new();
        let mut words = Words::default();
        while let Some(&c) = self.chars.peek() {
            if Some(c) == stop {
                self.chars.next();
                return Ok((result, words));
            }
            match c {
                '$' => {
                    let part = self.dollar()?;
                    words.split(&part);
                    self.grow(&mut result, &part)?;
                }
                '\'' | '"' if !self.rules.plain_quotes => {
                    let part = if c == '"' { self.double()? } else { self.single()? };
                    words.raw(&part);
                    self.grow(&mut result, &part)?;
                }
                _ => {
                    self.chars.next();
                    self.plain(c, &mut result, &mut words)?;
                }
            }
        }
        match stop {
            Some(stop) => Err(format!("unexpected end of statement while looking for matching {stop}")),
            None => Ok((result, words)),
        }
    }

    fn plain(&mut self, c: char, result: &mut String, words: &mut Words) -> Result<(), String> {
        if c != self.rules.escape {
            words.split_at(c);
            return self.grow_char(result, c);
        }
        let mut taken = String::new();
        if self.raw_escapes {
            taken.push(c);
        }
        taken.extend(self.chars.next());
        if !taken.is_empty() {
            words.raw(&taken);
        }
        self.grow(result, &taken)
    }

    /// All up to the next `'`, as it is.
    fn single(&mut self) -> Result<String, String> {
        let mut result = String::new();
        self.quote(&mut result);
        loop {
            match self.chars.next() {
                None => {
                    return Err("unexpected end of statement while looking for matching single-quote".to_owned());
                }
                Some('\'') => break,
                Some(c) => self.grow_char(&mut result, c)?,
            }
        }
        if self.rules.keep_quotes {
            result.push('\'');
        }
        Ok(result)
    }

    /// Takes a quote, and keeps it if quotes are kept.
    fn quote(&mut self, result: &mut String) {
        let quote = self.chars.next();
        if self.rules.keep_quotes {
            result.extend(quote);
        }
    }

    /// All up to the next `"`; variables are replaced and `"`, `$` and the escape character can be escaped.
    fn double(&mut self) -> Result<String, String> {
        let mut result = String::new();
        self.quote(&mut result);
        loop {
            match self.chars.peek().copied() {
                None => {
                    return Err("unexpected end of statement while looking for matching double-quote".to_owned());
                }
                Some('"') => {
                    self.quote(&mut result);
                    return Ok(result);
                }
                Some('$') => {
                    let part = self.dollar()?;
                    self.grow(&mut result, &part)?;
                }
                Some(c) if c == self.rules.escape => {
                    self.chars.next();
                    self.escaped_in_double(c, &mut result)?;
                }
                Some(c) => {
                    self.chars.next();
                    self.grow_char(&mut result, c)?;
                }
            }
        }
    }

    fn escaped_in_double(&mut self, escape: char, result: &mut String) -> Result<(), String> {
        let special = |c: &char| *c == '"' || *c == '$' || *c == escape;
        match self.chars.peek().copied() {
            Some(next) if special(&next) => {
                self.chars.next();
                if self.raw_escapes {
                    self.grow_char(result, escape)?;
                }
                self.grow_char(result, next)
            }
            _ => self.grow_char(result, escape),
        }
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.chars.next();
        if self.chars.peek() == Some(&'{') {
            self.chars.next();
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err(format!("variables are nested more than {MAX_DEPTH} deep"));
            }
            let value = self.braces();
            self.depth -= 1;
            return value;
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".to_owned());
        }
        match self.plain_value(&name)? {
            None if self.rules.keep_unset => Ok(format!("${name}")),
            value => Ok(value.unwrap_or_default()),
        }
    }

    /// The value of a variable whose absence is worth a note.
    fn plain_value(&mut self, name: &str) -> Result<Option<String>, String> {
        let value = self.value(name)?;
        if value.is_none() {
            self.out.unmatched.insert(name.to_owned());
        }
        Ok(value)
    }

    fn value(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(value) = self.env.get(name) else {
            return Ok(None);
        };
        self.budget.text(value.len())?;
        self.out.matched.insert(name.to_owned());
        Ok(Some(value.to_owned()))
    }

    /// A name, a number, or one of the shell's special parameters.
    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(&c) = self.chars.peek() {
            let digits = name.starts_with(|c: char| c.is_ascii_digit());
            let first = name.is_empty();
            if first && "@*#?-$!".contains(c) {
                self.chars.next();
                return c.to_string();
            }
            let fits = if digits { c.is_ascii_digit() } else { c.is_alphanumeric() || c == '_' };
            if !fits {
                break;
            }
            name.push(c);
            self.chars.next();
        }
        name
    }

    fn braces(&mut self) -> Result<String, String> {
        match self.chars.peek() {
            None => return Err("syntax error: missing '}'".to_owned()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".to_owned()),
            Some(_) => {}
        }
        let name = self.name();
        let Some(mut modifier) = self.chars.next() else {
            return Err("syntax error: missing '}'".to_owned());
        };
        if modifier == '}' {
            return Ok(match self.plain_value(&name)? {
                None if self.rules.keep_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            });
        }
        let colon = modifier == ':';
        if colon {
            modifier = self.chars.next().ok_or("syntax error: missing '}'")?;
        }
        match (modifier, colon) {
            ('-' | '+' | '?', _) => self.alternative(&name, modifier, colon),
            ('#' | '%', false) => self.trimmed(&name, modifier),
            ('/', false) => self.replaced(&name),
            _ => Err(format!("unsupported modifier ({}{modifier}) in substitution", if colon { ":" } else { "" })),
        }
    }

    fn operand(&mut self, stop: char, raw_escapes: bool) -> Result<String, String> {
        let before = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let result = self.until(Some(stop));
        self.raw_escapes = before;
        match result {
            Ok((text, _)) => Ok(text),
            Err(_) if self.chars.peek().is_none() && !self.budget.exhausted() => Err(match stop {
                '}' => "syntax error: missing '}'".to_owned(),
                _ => format!("syntax error: missing '{stop}' in ${{…}}"),
            }),
            Err(message) => Err(message),
        }
    }

    fn alternative(&mut self, name: &str, modifier: char, colon: bool) -> Result<String, String> {
        let word = self.operand('}', false)?;
        let value = self.value(name)?;
        if value.is_none() && self.rules.keep_unset {
            let colon = if colon { ":" } else { "" };
            return Ok(format!("${{{name}{colon}{modifier}{word}}}"));
        }
        let present = value.filter(|v| !(colon && v.is_empty()));
        match (modifier, present) {
            ('-', present) => Ok(present.unwrap_or(word)),
            ('+', Some(_)) => Ok(word),
            ('+', None) => Ok(String::new()),
            (_, Some(value)) => Ok(value),
            (_, None) if !word.is_empty() => Err(format!("{name}: {word}")),
            (_, None) if self.env.get(name).is_none() => Err(format!("{name}: is not allowed to be unset")),
            (_, None) => Err(format!("{name}: is not allowed to be empty")),
        }
    }

    fn trimmed(&mut self, name: &str, modifier: char) -> Result<String, String> {
        let word = self.operand('}', true)?;
        let Some(value) = self.plain_value(name)? else {
            return Ok(match self.rules.keep_unset {
                true => format!("${{{name}{modifier}{word}}}"),
                false => String::new(),
            });
        };
        let (pattern, longest) = match word.strip_prefix(modifier) {
            Some(pattern) => (pattern, true),
            None => (word.as_str(), false),
        };
        let text: Vec<char> = value.chars().collect();
        match modifier {
            '#' => pattern::trim_start(pattern, &text, longest),
            _ => pattern::trim_end(pattern, &text, longest),
        }
    }

    fn replaced(&mut self, name: &str) -> Result<String, String> {
        let all = self.chars.peek() == Some(&'/');
        if all {
            self.chars.next();
        }
        let pattern = self.operand('/', true)?;
        let with = self.operand('}', true)?;
        let Some(value) = self.plain_value(name)? else {
            let slash = if all { "/" } else { "" };
            return Ok(match self.rules.keep_unset {
                true => format!("${{{name}/{slash}{pattern}/{with}}}"),
                false => String::new(),
            });
        };
        let text: Vec<char> = value.chars().collect();
        pattern::replace(&pattern, &text, &with, all, MAX_RESULT)
    }
}

#[cfg(test)]
mod tests;
