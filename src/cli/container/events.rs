//! `events`.

use super::list::{has_label, keyed};
use super::values::moment;
use crate::cli::template::Template;
use crate::cli::{Global, Outcome};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::time::Duration;
use xbuild_runner::container::clock;
use xbuild_runner::container::events::Event;

/// Flags of `events`.
#[derive(clap::Args, Debug)]
pub(crate) struct EventsArgs {
    /// Only what fits (`container=web`, `event=die`, `type=image`, `label=k=v`)
    #[arg(short, long)]
    filter: Vec<String>,
    /// `json`, or a template
    #[arg(long)]
    format: Option<String>,
    /// From this time on
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Up to this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

const KEYS: [&str; 9] = ["container", "daemon", "event", "image", "label", "network", "scope", "type", "volume"];
/// How often the journal is looked at.
const PAUSE: Duration = Duration::from_millis(50);

pub(crate) fn events(args: &EventsArgs, global: &Global) -> Result<Outcome> {
    let filters = keyed(&args.filter, &KEYS)?;
    let nanos = |(seconds, nanos): (i64, u32)| seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(nanos));
    let since = args.since.as_deref().map(moment).transpose()?.map(nanos);
    let until = args.until.as_deref().map(moment).transpose()?.map(nanos);
    let template = match args.format.as_deref() {
        None => None,
        Some("json") => Some(Template::parse("{{json .}}")?),
        Some(text) => Some(Template::parse(text)?),
    };
    let journal = global.containers()?.events();
    let start = since.unwrap_or_else(|| nanos(clock::now()));
    let wanted = |event: &Event| {
        event.time_nano >= start && until.is_none_or(|until| event.time_nano <= until) && fits(&filters, event)
    };
    let mut out = std::io::stdout().lock();
    if since.is_some()
        && let Ok(older) = File::open(journal.path().with_extension("old"))
    {
        read(&mut BufReader::new(older), &mut |event| show(&mut out, template.as_ref(), event), &wanted)?;
    }
    let mut current: Option<BufReader<File>> = None;
    loop {
        let over = until.is_some_and(|until| nanos(clock::now()) > until);
        if current.is_none() {
            current = File::open(journal.path()).ok().map(BufReader::new);
        }
        if let Some(file) = &mut current {
            read(file, &mut |event| show(&mut out, template.as_ref(), event), &wanted)?;
            use std::os::unix::fs::MetadataExt;
            let own = file.get_ref().metadata().map(|about| about.ino()).ok();
            if std::fs::metadata(journal.path()).map(|about| about.ino()).ok() != own {
                current = None;
            }
        }
        if over {
            return Ok(Outcome::Success);
        }
        std::thread::sleep(PAUSE);
    }
}

fn read(
    from: &mut BufReader<File>,
    show: &mut dyn FnMut(&Event) -> Result<()>,
    wanted: &dyn Fn(&Event) -> bool,
) -> Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let count = from.read_until(b'\n', &mut line).context("cannot read the journal")?;
        if line.last() != Some(&b'\n') {
            from.seek_relative(-i64::try_from(count)?).context("cannot read the journal")?;
            return Ok(());
        }
        if let Ok(event) = serde_json::from_slice::<Event>(&line)
            && wanted(&event)
        {
            show(&event)?;
        }
    }
}

fn fits(filters: &BTreeMap<String, Vec<String>>, event: &Event) -> bool {
    let attributes = &event.actor.attributes;
    let is = |value: &String| {
        event.actor.id == *value
            || (value.len() >= 4 && event.actor.id.trim_start_matches("sha256:").starts_with(value.as_str()))
            || attributes.get("name") == Some(value)
    };
    filters.iter().all(|(key, values)| {
        values.iter().any(|value| match key.as_str() {
            "type" => event.kind == *value,
            "event" => event.action == *value || event.action.split(':').next() == Some(value),
            "scope" => event.scope == *value,
            "label" => has_label(attributes, value),
            "image" => {
                (event.kind == "image" && is(value)) || attributes.get("image").is_some_and(|image| image == value)
            }
            kind => event.kind == kind && is(value),
        })
    })
}

fn show(out: &mut impl Write, template: Option<&Template>, event: &Event) -> Result<()> {
    if let Some(template) = template {
        let mut value = serde_json::to_value(event)?;
        if let serde_json::Value::Object(map) = &mut value {
            // Older names that scripts still read.
            map.insert("status".to_owned(), event.action.clone().into());
            map.insert("id".to_owned(), event.actor.id.clone().into());
            map.insert("ID".to_owned(), event.actor.id.clone().into());
        }
        writeln!(out, "{}", template.execute(&value)?)?;
    } else {
        let (seconds, nanos) = (event.time_nano.div_euclid(1_000_000_000), event.time_nano.rem_euclid(1_000_000_000));
        let time = clock::format(seconds, u32::try_from(nanos)?);
        let attributes: Vec<String> =
            event.actor.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
        writeln!(out, "{time} {} {} {} ({})", event.kind, event.action, event.actor.id, attributes.join(", "))?;
    }
    Ok(out.flush()?)
}
