//! Fields as Go looks them up: a structure has those of its type, a map whatever name is asked for. The template engine
//! knows maps alone, so a function stands in its syntax tree wherever fields are named, and knows which maps are maps.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::parse::{CommandNode, Expr, ListNode, Node, PipeNode, Pos, SmolStr};
use gotmpl::{Result, Template, TemplateError, Value};

use super::typed;

/// The function: a value, where the chain of fields stands in the template, and their names.
const FUNCTION: &str = "insulaFields";

/// The same where what is found is printed at once: nothing is `<nil>` in a structure, in a map no value.
const PRINTED: &str = "insulaFieldsPrinted";

/// The name of a template itself; those that it defines have others.
pub(super) const ITSELF: &str = "\0";

pub(super) type Map = BTreeMap<Arc<str>, Value>;

/// Data of a template.
#[derive(Debug, Clone)]
pub(crate) struct Data {
    value: Value,
    /// Those of its maps that have names of the user's. Every other one stands for a structure.
    maps: Arc<[Arc<Map>]>,
}

impl Data {
    pub(super) fn new(value: Value, maps: Vec<Arc<Map>>) -> Self {
        Self { value, maps: maps.into() }
    }
}

impl From<Value> for Data {
    /// Structures alone.
    fn from(value: Value) -> Self {
        Self::new(value, Vec::new())
    }
}

/// Understands `text`.
pub(super) fn parse(template: Template, text: &str) -> Result<Template> {
    let mut template = template.parse(text)?;
    let names: Vec<String> = template.templates().into_iter().map(str::to_owned).collect();
    for name in names {
        if let Some(mut tree) = template.lookup(&name).cloned() {
            Rewriting { text }.list(&mut tree);
            template = template.add_parse_tree(&name, tree);
        }
    }
    Ok(template)
}

/// What comes of a template that [`parse`] has made.
pub(super) fn render(template: &Template, data: &Data) -> Result<String> {
    let maps = Arc::clone(&data.maps);
    let printed = Arc::clone(&maps);
    let template = template
        .clone()
        .func(FUNCTION, move |arguments| look_up(&maps, arguments).map(|found| found.unwrap_or(Value::Nil)));
    let template = template.func(PRINTED, move |arguments| match look_up(&printed, arguments)? {
        Some(Value::Nil) => Ok(Value::from("<nil>")),
        found => Ok(found.unwrap_or(Value::Nil)),
    });
    match template.lookup(ITSELF) {
        Some(_) => template.execute_template_to_string(ITSELF, &data.value),
        // It is empty.
        None => template.execute_to_string(&data.value),
    }
}

struct Rewriting<'a> {
    text: &'a str,
}

impl Rewriting<'_> {
    fn list(&self, list: &mut ListNode) {
        for node in &mut list.nodes {
            match node {
                Node::List(list) => self.list(list),
                Node::Define(define) => self.list(&mut define.body),
                Node::Action(action) => {
                    self.pipe(&mut action.pipe);
                    print(&mut action.pipe);
                }
                Node::Template(template) => template.pipe.iter_mut().for_each(|pipe| self.pipe(pipe)),
                Node::If(branch) | Node::Range(branch) | Node::With(branch) => {
                    self.pipe(&mut branch.pipe);
                    self.list(&mut branch.body);
                    branch.else_body.iter_mut().for_each(|list| self.list(list));
                }
                Node::Text(_) | Node::Break(_) | Node::Continue(_) => {}
            }
        }
    }

    fn pipe(&self, pipe: &mut PipeNode) {
        let expressions = pipe.commands.iter_mut().flat_map(|command| &mut command.args);
        expressions.for_each(|expression| self.expression(expression));
    }

    fn expression(&self, expression: &mut Expr) {
        let call = match expression {
            Expr::Field(pos, fields) => self.call(Expr::Dot(*pos), "", fields),
            Expr::Variable(pos, name, fields) if !fields.is_empty() => {
                self.call(Expr::Variable(*pos, name.clone(), Vec::new()), name, fields)
            }
            // A function's arguments are not part of it.
            Expr::Chain(_, inner, fields) if !matches!(**inner, Expr::Identifier(..)) => {
                self.expression(inner);
                self.call((**inner).clone(), "", fields)
            }
            Expr::Pipe(_, pipe) => return self.pipe(pipe),
            _ => return,
        };
        *expression = call;
    }

    /// The call that stands for `fields` of `of`, which is written as `written`.
    fn call(&self, of: Expr, written: &str, fields: &[SmolStr]) -> Expr {
        let pos = of.pos();
        let chain: String = fields.iter().map(|field| format!(".{field}")).collect();
        let text = |text: &str| Expr::String(pos, Arc::from(text));
        let mut args = vec![Expr::Identifier(pos, SmolStr::from(FUNCTION))];
        let at = self.place(pos, written, fields);
        args.extend([of, text(&format!("{at}: executing \"\" at <{written}{chain}>"))]);
        args.extend(fields.iter().map(|field| text(field)));
        let command = CommandNode { pos, args };
        Expr::Pipe(pos, PipeNode { pos, decl: Vec::new(), commands: vec![command], is_assign: false })
    }

    /// `:LINE:BYTE` as Go counts them, from one and from zero: at the first field of a variable, else at the second if
    /// there is one.
    fn place(&self, pos: Pos, written: &str, fields: &[SmolStr]) -> String {
        let first = match (written.len(), fields) {
            (0, [first, _, ..]) => first.len() + 1,
            (length, _) => length,
        };
        let before = self.text.get(..pos.offset).unwrap_or_default();
        let line = before.rfind('\n').map_or(0, |newline| newline + 1);
        format!(":{}:{}", before.matches('\n').count() + 1, pos.offset - line + first)
    }
}

/// Puts [`PRINTED`] in place of [`FUNCTION`] where nothing but a chain of fields is printed.
fn print(pipe: &mut PipeNode) {
    if let [CommandNode { args, .. }] = &mut pipe.commands[..]
        && let [Expr::Pipe(_, chain)] = &mut args[..]
        && let Some(Expr::Identifier(_, name)) =
            chain.commands.first_mut().and_then(|command| command.args.first_mut())
        && *name == FUNCTION
        && pipe.decl.is_empty()
    {
        *name = SmolStr::from(PRINTED);
    }
}

/// What is found; nothing where a map has not got it.
fn look_up(maps: &[Arc<Map>], arguments: &[Value]) -> Result<Option<Value>> {
    let [value, Value::String(at), fields @ ..] = arguments else {
        return Err(TemplateError::Exec(format!("{FUNCTION} is not for templates")));
    };
    let wrong = |what: String| Err(TemplateError::Exec(format!("{at}: {what}")));
    let mut value = value.clone();
    for (index, field) in fields.iter().enumerate() {
        let Value::String(name) = field else { continue };
        let found = match &value {
            Value::Map(map) => match map.get(name) {
                Some(found) => found.clone(),
                // And so is all that is asked of it.
                None if maps.iter().any(|known| Arc::ptr_eq(known, map)) => return Ok(None),
                None => return wrong(format!("map has no entry for key {name:?}")),
            },
            // What a map has not got, kept in a variable.
            Value::Nil if index == 0 => return Ok(None),
            Value::Nil => return wrong(format!("nil pointer evaluating interface {{}}.{name}")),
            _ => return wrong(format!("can't evaluate field {name} in type interface {{}}")),
        };
        value = match (typed::leads_nowhere(&found), index + 1 == fields.len()) {
            (false, _) => found,
            (true, true) => Value::Nil,
            (true, false) => return wrong(format!("map has no entry for key {name:?}")),
        };
    }
    Ok(Some(value))
}
