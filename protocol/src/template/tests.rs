//! What Go's `text/template` does, and that no text is too strange.

use proptest::prelude::{ProptestConfig, any, prop, proptest};
use serde_json::json;

use super::*;

/// Fields that begin with `Maybe` may be absent.
fn absent(parent: &str, name: &str) -> Option<Value> {
    match (parent, name) {
        (_, "MaybeObject") => Some(Value::Null),
        ("Labels", _) => Some(Value::Null),
        _ => name.starts_with("Maybe").then(|| Value::from("")),
    }
}

fn data() -> Value {
    json!({"ID": "abc", "Spec": {"Name": "web", "Labels": {"a": "1", "b.c": "2"}, "Replicas": 3}, "Zero": 0,
        "Ports": [{"Target": 80}, {"Target": 443}], "Words": ["x", "y"], "Text": "Hello big world", "Nil": null, "Yes": true})
}

fn run(source: &str) -> Result<String, String> {
    let result = Template::parse(source).and_then(|template| template.execute(&data(), absent));
    result.map_err(|error| error.to_string().trim_start_matches("template: ").to_owned())
}

#[test]
fn templates_give_what_go_gives() {
    for (source, want) in [
        ("plain", "plain"),
        ("{{.ID}}: {{.Spec.Name}}", "abc: web"),
        ("{{json .Spec.Labels}} {{json .ID}}", r#"{"a":"1","b.c":"2"} "abc""#),
        (r#"{{index .Spec.Labels "b.c"}}|{{index .Spec.Labels "none"}}"#, "2|"),
        ("{{index .Ports 1}} {{(index .Ports 0).Target}}", "map[Target:443] 80"),
        ("{{range .Ports}}<{{.Target}} {{$.ID}}>{{end}}", "<80 abc><443 abc>"),
        ("{{range $i, $p := .Ports}}{{$i}}={{$p.Target}} {{end}}", "0=80 1=443 "),
        ("{{range $p := .Words}}{{$p}}{{end}}{{range 2}}{{.}}{{end}}", "xy01"),
        ("{{range $k, $v := .Spec.Labels}}{{$k}}:{{$v}};{{else}}none{{end}}", "a:1;b.c:2;"),
        ("{{range .MaybeList}}x{{else}}none{{end}}{{range .Nil}}x{{end}}", "none"),
        ("{{if .Zero}}a{{else if .Yes}}b{{else}}c{{end}}", "b"),
        (
            "{{if .MaybeObject}}a{{else}}c{{end}}{{with .Spec}}{{.Name}}{{end}}{{with .Nil}}x{{else}}{{.ID}}{{end}}",
            "cwebabc",
        ),
        ("{{len .Words}}{{len .Text}}{{len .Spec.Labels}}", "2152"),
        ("{{println .ID .Zero}}{{print .ID .Zero 1 2}}", "abc 0\nabc0 1 2"),
        ("{{upper .ID}} {{.ID | upper | lower}} {{title .Text}}", "ABC abc Hello Big World"),
        (r#"{{join .Words ", "}} {{index (split .Text " ") 1}} {{split .ID "b"}}"#, "x, y big [a c]"),
        (r#"{{truncate .Text 5}}|{{pad .ID 1 2}}|{{truncate .ID 9}}"#, "Hello| abc  |abc"),
        (
            r#"{{eq .ID "abc"}} {{eq .ID "x" "abc"}} {{ne .Zero 0}} {{lt 1 2}} {{ge .Spec.Replicas 3}}"#,
            "true true false true true",
        ),
        (
            r#"{{and .Yes .ID}} {{or .Zero .ID}} {{not .Yes}} {{if and .MaybeObject .MaybeObject.State}}x{{end}}"#,
            "abc abc false ",
        ),
        (r#"{{printf "%s-%05d %q %-4v| %5.1f%%" .ID 42 .ID .Zero 2.25}}"#, "abc-00042 \"abc\" 0   |   2.2%"),
        ("a  {{- .ID -}}  b {{/* note */}}c{{- /* note */ -}}\n d", "aabcb cd"),
        (r#"{{"a\tb"}}{{`raw\t`}}{{-3}}{{1.5}}"#, "a\tbraw\\t-31.5"),
        ("{{$x := .ID}}{{if .Yes}}{{$x = .Text}}{{end}}{{$x}}", "Hello big world"),
        ("{{.Spec.Labels.none}} {{.Nil}} {{.MaybeText}}|{{.Words}}", "<no value> <no value> |[x y]"),
        (
            "{{.}}",
            "map[ID:abc Nil:<nil> Ports:[map[Target:80] map[Target:443]] Spec:map[Labels:map[a:1 b.c:2] Name:web \
            Replicas:3] Text:Hello big world Words:[x y] Yes:true Zero:0]",
        ),
    ] {
        assert_eq!(run(source).as_deref(), Ok(want), "{source}");
    }
}

#[test]
fn mistakes_are_named_in_gos_words() {
    for (source, want) in [
        ("{{", ":1: unclosed action"),
        ("a\n{{.ID", ":2: unclosed action"),
        ("{{}}", ":1: missing value for command"),
        ("{{end}}", ":1: unexpected {{end}}"),
        ("{{else}}", ":1: unexpected {{else}}"),
        ("{{if .ID}}x", ":1: unexpected EOF"),
        ("{{if}}x{{end}}", ":1: missing value for if"),
        ("{{foo .ID}}", ":1: function \"foo\" not defined"),
        ("{{html .ID}}", ":1: function \"html\" is not supported"),
        ("{{define \"x\"}}{{end}}", ":1: {{define}} is not supported"),
        ("{{$x}}", ":1: undefined variable \"$x\""),
        ("{{if .ID}}{{$x := 1}}{{end}}{{$x}}", ":1: undefined variable \"$x\""),
        ("{{\"a}}", ":1: unterminated quoted string"),
        ("{{(.ID}}", ":1: unclosed left paren"),
        ("{{.ID)}}", ":1: unexpected \")\" in command"),
        ("{{.ID | .ID}}", ":1: non executable command in pipeline: .ID"),
        ("{{/* x}}", ":1: unclosed comment"),
        ("{{.ID !}}", ":1: unexpected '!' in action"),
        ("{{1x}}", ":1: bad number syntax: \"1x\""),
        ("{{.Nope}}", ":1:2: executing \"\" at <.Nope>: can't evaluate field Nope: there is no such field"),
        ("x\n {{.ID.Nope}}", ":2:6: executing \"\" at <.ID.Nope>: can't evaluate field Nope in type string"),
        ("{{.Nil.State}}", ":1:6: executing \"\" at <.Nil.State>: nil pointer evaluating Nil.State"),
        ("{{.ID .Zero}}", ":1:2: executing \"\" at <.ID>: can't give argument to non-function .ID"),
        ("{{index .Words 2}}", ":1:2: executing \"\" at <index>: error calling index: index out of range: 2"),
        ("{{upper .Zero}}", ":1:2: executing \"\" at <upper>: error calling upper: expected string; found 0"),
        ("{{lower}}", ":1:2: executing \"\" at <lower>: error calling lower: wrong number of args: want 1 got 0"),
        ("{{printf \"%e\" 1}}", ":1:2: executing \"\" at <printf>: error calling printf: the verb %e is not supported"),
        ("{{range .ID}}{{end}}", ":1:8: executing \"\" at <.ID>: range can't iterate over abc"),
    ] {
        assert_eq!(run(source), Err(want.to_owned()), "{source}");
    }
}

#[test]
fn limits_end_what_would_not_end() {
    let nested =
        |depth: usize| format!("{}1{}", "{{print ".to_owned() + &"(print ".repeat(depth), ")".repeat(depth) + "}}");
    assert_eq!(run(&nested(DEPTH_MAX)).unwrap(), "1");
    for (source, reason) in [
        (nested(DEPTH_MAX + 1), "nesting deeper than"),
        ("{{if 1}}".repeat(100_000 / 8), "not supported"),
        ("{{if 1}}".repeat(1000), "nesting deeper than"),
        ("{{range 1000}}{{range 1000}}{{range 1000}}{{end}}{{end}}{{end}}".to_owned(), "steps"),
        ("{{range 1000000000}}{{end}}".to_owned(), "not supported"),
        ("{{$x := \"xx\"}}{{range 40}}{{$x = print $x $x}}{{end}}".to_owned(), "bytes"),
        ("{{range 100000}}{{printf \"%1000d\" .}}{{end}}".to_owned(), "bytes"),
        ("x".repeat(Dialect::Client.limits().source + 1), "bytes"),
    ] {
        let error = run(&source).unwrap_err();
        assert!(error.contains(reason), "{}: {error}", source.chars().take(40).collect::<String>());
    }
}

#[test]
fn headings_are_not_changed_by_functions() {
    let template = Template::parse(r#"{{upper .Name}} {{json .ID}} {{index (split .Name ".") 0}} {{.None}}"#).unwrap();
    let headings = json!({"Name": "Name", "ID": "Id"});
    assert_eq!(template.execute_headings(&headings).unwrap(), "Name Id Name <no value>");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_text_makes_it_panic(source in any::<String>()) {
        let _ = run(&source);
    }

    #[test]
    fn no_mixture_of_tokens_makes_it_panic(parts in prop::collection::vec(prop::sample::select(vec![
        "{{", "}}", "{{- ", " -}}", ".", ".Spec", ".Words", ".Text", "$", "$x", "$y", ":=", "=", ",", "|", "(", ")", " ", "if",
        "else", "end", "range", "with", "index", "len", "printf", "\"%5d\"", "\"%.3s\"", "split", "join", "json", "eq", "lt",
        "truncate", "pad", "0", "-1", "1.5", "99999999999999999999", "\"a\"", "`b`", "nil", "true", "é", "'", "/*", "*/", "\\", "\n",
        "{{range .Ports}}", "{{end}}", "{{else}}", "{{if .ID}}", "{{.ID}}", "title", "not", "or", "and",
    ]), 0..24)) {
        let _ = run(&parts.concat());
    }
}
