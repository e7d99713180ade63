//! Text to a tree.

use serde_json::Value;

type Result<T> = std::result::Result<T, String>;

/// A piece of a template.
#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    Print(Pipeline),
    /// Conditions with what follows them, and what follows when none holds.
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    With(Pipeline, Vec<Node>, Vec<Node>),
    Range(Pipeline, Vec<Node>, Vec<Node>),
    Break,
    Continue,
}

/// Commands, each taking the one before as its last argument; the result may go to variables.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) variables: Vec<String>,
    pub(super) declares: bool,
    pub(super) commands: Vec<Vec<Operand>>,
}

impl Pipeline {
    /// The path of the field that it is, if it is nothing but one.
    pub(super) fn field(&self) -> Option<&[String]> {
        match self.commands.as_slice() {
            [one] => match one.as_slice() {
                [Operand::Dot(path) | Operand::Variable(_, path)] if !path.is_empty() => Some(path),
                _ => None,
            },
            _ => None,
        }
    }
}

/// A part of a command.
#[derive(Debug)]
pub(super) enum Operand {
    Literal(Value),
    /// `.a.b`, as fields of the dot.
    Dot(Vec<String>),
    /// `$x.a.b`.
    Variable(String, Vec<String>),
    /// `(…).a.b`.
    Group(Box<Pipeline>, Vec<String>),
    Function(String),
}

pub(super) fn parse(text: &str) -> Result<Vec<Node>> {
    let mut parser = Parser { pieces: pieces(text)?, at: 0 };
    let (nodes, end) = parser.block()?;
    match end {
        Stop::Text => Ok(nodes),
        Stop::End => Err("unexpected {{end}}".to_owned()),
        Stop::Else(_) => Err("unexpected {{else}}".to_owned()),
    }
}

/// Text outside of braces, or the inside of a pair.
enum Piece {
    Text(String),
    Action(String),
}

fn pieces(text: &str) -> Result<Vec<Piece>> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut rest = text;
    let mut trim = false;
    while !rest.is_empty() {
        let (before, after) = match rest.find("{{") {
            Some(at) => (&rest[..at], Some(&rest[at + 2..])),
            None => (rest, None),
        };
        let mut before = before.replace("\\t", "\t").replace("\\n", "\n");
        if trim {
            before = before.trim_start().to_owned();
        }
        let Some(mut inside) = after else {
            pieces.push(Piece::Text(before));
            break;
        };
        if let Some(stripped) = inside.strip_prefix("- ") {
            before = before.trim_end().to_owned();
            inside = stripped;
        }
        pieces.push(Piece::Text(before));
        let end = closing(inside).ok_or("unclosed action")?;
        let action = &inside[..end];
        rest = &inside[end + 2..];
        let stripped = action.strip_suffix(" -").or_else(|| action.strip_suffix("*/-").map(|_| action));
        trim = stripped.is_some();
        let action = stripped.unwrap_or(action).trim();
        if !action.starts_with("/*") {
            pieces.push(Piece::Action(action.to_owned()));
        }
    }
    Ok(pieces)
}

/// Where the action ends: the first closing braces outside of strings.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '`') => quote = Some(c),
            None if text[at..].starts_with("}}") => return Some(at),
            None => {}
        }
    }
    None
}

/// What ends a block.
enum Stop {
    Text,
    End,
    /// With the words behind it.
    Else(String),
}

struct Parser {
    pieces: Vec<Piece>,
    at: usize,
}

impl Parser {
    fn block(&mut self) -> Result<(Vec<Node>, Stop)> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.get(self.at) {
            self.at += 1;
            let action = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text.clone()));
                    continue;
                }
                Piece::Action(action) => action.clone(),
            };
            let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((&action, ""));
            match word {
                "" => return Err("missing value for command".to_owned()),
                "end" => return Ok((nodes, Stop::End)),
                "else" => return Ok((nodes, Stop::Else(rest.trim().to_owned()))),
                "if" => nodes.push(self.condition(rest)?),
                "with" => {
                    let (pipeline, body, other) = self.body(rest)?;
                    nodes.push(Node::With(pipeline, body, other));
                }
                "range" => {
                    let (pipeline, body, other) = self.body(rest)?;
                    nodes.push(Node::Range(pipeline, body, other));
                }
                "break" => nodes.push(Node::Break),
                "continue" => nodes.push(Node::Continue),
                "define" | "template" | "block" => return Err(format!("{{{{{word}}}}} is not supported")),
                _ => nodes.push(Node::Print(pipeline(&action)?)),
            }
        }
        Ok((nodes, Stop::Text))
    }

    fn condition(&mut self, text: &str) -> Result<Node> {
        let mut arms = Vec::new();
        let mut text = text.to_owned();
        loop {
            let test = pipeline(&text)?;
            let (body, end) = self.block()?;
            arms.push((test, body));
            match end {
                Stop::Text => return Err("unexpected EOF".to_owned()),
                Stop::End => return Ok(Node::If(arms, Vec::new())),
                Stop::Else(more) => match more.strip_prefix("if ") {
                    Some(next) => text = next.to_owned(),
                    None => return Ok(Node::If(arms, self.last()?)),
                },
            }
        }
    }

    fn body(&mut self, text: &str) -> Result<(Pipeline, Vec<Node>, Vec<Node>)> {
        let pipeline = pipeline(text)?;
        let (body, end) = self.block()?;
        match end {
            Stop::Text => Err("unexpected EOF".to_owned()),
            Stop::End => Ok((pipeline, body, Vec::new())),
            Stop::Else(_) => Ok((pipeline, body, self.last()?)),
        }
    }

    /// The block that has to be followed by an end.
    fn last(&mut self) -> Result<Vec<Node>> {
        match self.block()? {
            (nodes, Stop::End) => Ok(nodes),
            _ => Err("unexpected EOF".to_owned()),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Literal(Value),
    Open,
    /// With the fields behind it.
    Close(Vec<String>),
    Pipe,
    Comma,
    Declare,
    Assign,
}

fn pipeline(text: &str) -> Result<Pipeline> {
    let tokens = tokens(text)?;
    let mut tokens = tokens.as_slice();
    let (parsed, _) = parse_pipeline(&mut tokens, false)?;
    if tokens.is_empty() { Ok(parsed) } else { Err("unexpected \")\"".to_owned()) }
}

/// A pipeline up to its end, or to the parenthesis that closes it; with the fields behind that.
fn parse_pipeline(tokens: &mut &[Token], nested: bool) -> Result<(Pipeline, Vec<String>)> {
    let mut closed = !nested;
    let mut fields = Vec::new();
    let mut variables = Vec::new();
    let mut declares = false;
    if let Some(at) = tokens.iter().position(|token| matches!(token, Token::Declare | Token::Assign)) {
        declares = tokens[at] == Token::Declare;
        for token in &tokens[..at] {
            match token {
                Token::Word(name) if name.starts_with('$') => variables.push(name.clone()),
                Token::Comma => {}
                _ => return Err("unexpected token in declaration".to_owned()),
            }
        }
        *tokens = &tokens[at + 1..];
    }
    let mut commands = vec![Vec::new()];
    while let Some((token, rest)) = tokens.split_first() {
        *tokens = rest;
        let operand = match token {
            Token::Pipe => {
                commands.push(Vec::new());
                continue;
            }
            Token::Close(behind) if nested => {
                (closed, fields) = (true, behind.clone());
                break;
            }
            Token::Literal(value) => Operand::Literal(value.clone()),
            Token::Word(word) => operand(word),
            Token::Open => {
                let (inner, fields) = parse_pipeline(tokens, true)?;
                Operand::Group(Box::new(inner), fields)
            }
            _ => return Err("unexpected token in command".to_owned()),
        };
        if let Some(command) = commands.last_mut() {
            command.push(operand);
        }
    }
    if commands.iter().any(Vec::is_empty) {
        return Err("missing value for command".to_owned());
    }
    if !closed {
        return Err("unclosed left paren".to_owned());
    }
    Ok((Pipeline { variables, declares, commands }, fields))
}

fn operand(word: &str) -> Operand {
    let fields = |text: &str| text.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    if let Some(rest) = word.strip_prefix('.') {
        return Operand::Dot(fields(rest));
    }
    if word.starts_with('$') {
        let (name, rest) = word.split_once('.').unwrap_or((word, ""));
        return Operand::Variable(name.to_owned(), fields(rest));
    }
    match word {
        "true" => Operand::Literal(Value::Bool(true)),
        "false" => Operand::Literal(Value::Bool(false)),
        "nil" => Operand::Literal(Value::Null),
        name => Operand::Function(name.to_owned()),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(c) = rest.chars().next() {
        let (token, length) = match c {
            '(' => (Token::Open, 1),
            ')' => {
                let after = &rest[1..];
                let length = if after.starts_with('.') { word_length(after) } else { 0 };
                let fields = after[..length].split('.').filter(|part| !part.is_empty()).map(str::to_owned);
                (Token::Close(fields.collect()), 1 + length)
            }
            '|' => (Token::Pipe, 1),
            ',' => (Token::Comma, 1),
            '=' => (Token::Assign, 1),
            ':' if rest.starts_with(":=") => (Token::Declare, 2),
            '"' => string(rest)?,
            '`' => {
                let end = rest[1..].find('`').ok_or("unterminated raw quoted string")?;
                (Token::Literal(Value::String(rest[1..=end].to_owned())), end + 2)
            }
            '0'..='9' | '-' | '+' => number(rest)?,
            '.' | '$' | '_' => (Token::Word(rest[..word_length(rest)].to_owned()), word_length(rest)),
            c if c.is_alphabetic() => (Token::Word(rest[..word_length(rest)].to_owned()), word_length(rest)),
            c => return Err(format!("unexpected {c:?} in command")),
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| !(c.is_alphanumeric() || matches!(c, '.' | '_' | '$'))).unwrap_or(text.len())
}

fn number(text: &str) -> Result<(Token, usize)> {
    let length = text[1..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).map_or(text.len(), |at| at + 1);
    let digits = &text[..length];
    let value = digits.parse::<i64>().map(Value::from).or_else(|_| digits.parse::<f64>().map(Value::from));
    value.map(|value| (Token::Literal(value), length)).map_err(|_| format!("bad number syntax: {digits:?}"))
}

fn string(text: &str) -> Result<(Token, usize)> {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Token::Literal(Value::String(value)), at + 1)),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 't')) => value.push('\t'),
                Some((_, 'r')) => value.push('\r'),
                Some((_, other)) => value.push(other),
                None => break,
            },
            c => value.push(c),
        }
    }
    Err("unterminated quoted string".to_owned())
}
