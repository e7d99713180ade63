//! Go's text templates, as far as `--format` uses them, over JSON values.
//!
//! [`Template::parse`] gives a tree, [`Template::execute`] text. A field that a value does not have is an error, as with
//! docker; a key that a map does not have is no value.

mod execute;
mod functions;
mod parse;

use anyhow::{Result, anyhow};
use parse::Node;
use serde_json::{Map, Value};

/// Key of an object under which fields lie that are not shown with it but may be asked for: docker leaves them out of JSON
/// when they are empty.
pub(crate) const OMITTED: &str = "\0omitted";

/// What is shown of an object: keys that begin with a zero are only for templates.
pub(crate) fn entries(map: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    map.iter().filter(|(key, _)| !key.starts_with('\0'))
}

/// A value without what is only for templates.
pub(crate) fn visible(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            entries(map).map(|(key, value)| (key.clone(), visible(value))).collect::<Map<_, _>>().into()
        }
        Value::Array(list) => list.iter().map(visible).collect(),
        plain => plain.clone(),
    }
}

/// Names of fields that are maps: any key may be asked for.
const MAPS: [&str; 15] = [
    "Labels",
    "Options",
    "Networks",
    "Ports",
    "PortBindings",
    "ExposedPorts",
    "Volumes",
    "Sysctls",
    "Tmpfs",
    "Attributes",
    "Containers",
    "DriverOpts",
    "Config.Labels",
    "StorageOpt",
    "Annotations",
];

/// Names of fields that are lists, which may be nil.
const LISTS: [&str; 34] = [
    "Aliases",
    "Args",
    "Binds",
    "BlkioWeightDevice",
    "CapAdd",
    "CapDrop",
    "Cmd",
    "Config",
    "DNSNames",
    "DeviceCgroupRules",
    "DeviceRequests",
    "Devices",
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "Entrypoint",
    "Env",
    "ExecIDs",
    "ExtraHosts",
    "GroupAdd",
    "Links",
    "MaskedPaths",
    "Mounts",
    "OnBuild",
    "ReadonlyPaths",
    "RepoDigests",
    "RepoTags",
    "SecondaryIPAddresses",
    "SecondaryIPv6Addresses",
    "SecurityOpt",
    "Shell",
    "Test",
    "Ulimits",
    "VolumesFrom",
];

/// A template that was understood.
#[derive(Debug)]
pub(crate) struct Template {
    nodes: Vec<Node>,
}

impl Template {
    /// Reads a template; `\t` and `\n` written out stand for themselves, as in docker.
    pub(crate) fn parse(text: &str) -> Result<Template> {
        let nodes = parse::parse(text).map_err(|why| anyhow!("template parsing error: template: :1: {why}"))?;
        Ok(Template { nodes })
    }

    /// The text for a value.
    pub(crate) fn execute(&self, value: &Value) -> Result<String> {
        let failed = |why| anyhow!("template parsing error: template: :1: executing \"\" {why}");
        execute::run(&self.nodes, value).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn example() -> Value {
        json!({
            "Id": "abcdef", "Path": "echo", "Args": ["a b", "c"], "Count": 3, "Big": 1_500_000_000_000u64, "Nothing": null,
            "State": {"Status": "created", "ExitCode": 0, "Running": false, "Health": null},
            "Config": {"Labels": {"x.y": "z", "k": "v"}, "Cmd": ["echo", "a b", "c"], "Env": [], "Entrypoint": null,
                       "Volumes": null},
        })
    }

    #[test]
    fn omitted_fields_can_be_asked_for_but_are_not_shown() {
        let value = json!({"Mounts": [{"Type": "bind", OMITTED: {"Name": ""}}, {"Type": "volume", "Name": "v"}]});
        let run = |text: &str| Template::parse(text).and_then(|template| template.execute(&value));
        let mounts = |text: &str| run(&format!("{{{{range .Mounts}}}}{text}{{{{end}}}}")).unwrap();
        assert_eq!(mounts("<{{.Name}}>"), "<><v>");
        assert_eq!(mounts("{{if .Name}}{{.Name}}{{else}}-{{end}}"), "-v");
        assert_eq!(mounts("{{len .}}{{range $k, $v := .}}{{$k}}{{end}}"), "1Type2NameType");
        assert_eq!(run("{{json .Mounts}}").unwrap(), r#"[{"Type":"bind"},{"Name":"v","Type":"volume"}]"#);
        assert_eq!(mounts("{{.}}"), "map[Type:bind]map[Name:v Type:volume]");
        assert!(run("{{range .Mounts}}{{.Nope}}{{end}}").is_err());
    }

    fn run(text: &str) -> Result<String> {
        Template::parse(text)?.execute(&example())
    }

    #[test]
    fn what_scripts_write() {
        for (template, want) in [
            ("plain", "plain"),
            ("{{.Id}}", "abcdef"),
            ("{{ .State.Status }}|{{.State.ExitCode}}|{{.State.Running}}", "created|0|false"),
            ("{{json .Config.Cmd}}", r#"["echo","a b","c"]"#),
            ("{{.Config.Cmd}}", "[echo a b c]"),
            ("{{.Config.Labels}}", "map[k:v x.y:z]"),
            ("{{range .Args}}<{{.}}>{{end}}", "<a b><c>"),
            ("{{range .Config.Env}}x{{else}}none{{end}}", "none"),
            ("{{range $i, $v := .Config.Cmd}}{{if eq $i 0}}{{$v}}{{end}}{{end}}", "echo"),
            ("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}", "k=v;x.y=z;"),
            (r#"{{index .Config.Labels "x.y"}}"#, "z"),
            (r#"{{index .Config.Labels "none"}}|"#, "|"),
            ("{{index .Args 1}}", "c"),
            (r#"{{(index .Args 0)}}"#, "a b"),
            ("{{if .State.Running}}yes{{else}}no{{end}}", "no"),
            ("{{if .State.Health}}some{{else if .Count}}count{{else}}none{{end}}", "count"),
            (r#"{{printf "%s-%d" .Path .State.ExitCode}}"#, "echo-0"),
            (r#"{{printf "%5d|%-4s|%q|%v" .Count "a" "b" .Args}}"#, "    3|a   |\"b\"|[a b c]"),
            ("{{len .Args}}", "2"),
            (r#"{{join .Args ","}}"#, "a b,c"),
            ("{{upper .Path}}{{lower \"X\"}}{{title \"word\"}}", "ECHOxWord"),
            ("{{println .Path}}", "echo\n"),
            ("{{with .State}}{{.Status}}{{end}}{{with .Nothing}}x{{else}}y{{end}}", "createdy"),
            ("{{slice .Id 0 4 | len}}", "4"),
            ("{{.Id | printf \"%s-%s\" .Path}}", "echo-abcdef"),
            ("{{$x := .Id}}{{$x}}{{$x = \"new\"}}{{$x}}", "abcdefnew"),
            ("{{and .Id .Count}}{{or .Nothing \"d\"}}{{not .Count}}", "3dfalse"),
            ("{{if and (eq .Count 3) (ne .Id \"x\") (lt 1 2)}}ok{{end}}", "ok"),
            ("a {{- .Id -}} b", "aabcdefb"),
            ("{{/* nothing */}}x", "x"),
            (r#"{{range split "a,b" ","}}[{{.}}]{{end}}"#, "[a][b]"),
            ("{{truncate .Id 3}}{{pad \"x\" 1 2}}|", "abc x  |"),
            (r"{{.Id}}\t{{.Path}}", "abcdef\techo"),
            (r#"{{title "foo bar_baz o'neil"}}"#, "Foo Bar_baz O'Neil"),
            ("{{.Big}}", "1500000000000"),
            ("{{.Config.Labels.none}}", "<no value>"),
            (
                "{{.Config.Entrypoint}} {{.Config.Volumes}} {{.State.Health}} {{json .Config.Volumes}}",
                "[] map[] <nil> null",
            ),
            ("{{with .State}}{{.Health}}{{end}}{{$s := .State}}{{$s.Health}}", "<nil><nil>"),
            ("{{`raw`}}{{true}}{{1.5}}", "rawtrue1.5"),
            ("{{range .Args}}{{if eq . \"c\"}}{{break}}{{end}}{{.}}{{end}}", "a b"),
        ] {
            assert_eq!(run(template).expect(template), want, "{template}");
        }
    }

    #[test]
    fn what_is_wrong_is_an_error() {
        for template in
            ["{{", "{{.No.Such}}", "{{if .Id}}x", "{{end}}", "{{nofunc .Id}}", "{{index .Args 9}}", "{{.Id", "{{$x}}"]
        {
            assert!(run(template).is_err(), "{template}");
        }
        let error = run("{{.State.Nope}}").unwrap_err().to_string();
        assert!(error.contains("<.State.Nope>") && error.contains("can't evaluate field Nope"), "{error}");
    }
}
