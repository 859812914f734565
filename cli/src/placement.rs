//! Flags about where tasks run: what they are spread over, and which generic resources they get.
//!
//! Source: docker/cli, `service/opts.go`, `service/generic_resource_opts.go` and `service/update.go`.

use std::str::FromStr;

use serde_json::{Value, json};
use shoal_protocol::spec::{GenericResource, GenericResources, Preference, Spread};

use crate::error::CliError;
use crate::spec::slot;

const PREFERENCES: [&str; 3] = ["TaskTemplate", "Placement", "Preferences"];
const GENERIC_RESOURCES: [&str; 4] = ["TaskTemplate", "Resources", "Reservations", "GenericResources"];

/// What `service create` sets as a whole.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct NewPlacementArgs {
    /// Add a placement preference (spread=node.labels.zone)
    #[arg(long, value_name = "PREFERENCE")]
    placement_pref: Vec<PreferenceFlag>,
    /// User defined resources (gpu=2)
    #[arg(long, value_name = "KIND=NUMBER")]
    generic_resource: Vec<String>,
}

/// What `service update` changes item by item.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct ChangedPlacementArgs {
    /// Add a placement preference
    #[arg(long, value_name = "PREFERENCE")]
    placement_pref_add: Vec<PreferenceFlag>,
    /// Remove a placement preference
    #[arg(long, value_name = "PREFERENCE")]
    placement_pref_rm: Vec<PreferenceFlag>,
    /// Add a Generic resource
    #[arg(long, value_name = "KIND=NUMBER")]
    generic_resource_add: Vec<String>,
    /// Remove a Generic resource
    #[arg(long, value_name = "KIND")]
    generic_resource_rm: Vec<String>,
}

/// `spread=LABEL`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PreferenceFlag(Preference);

impl FromStr for PreferenceFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("spread", label)) => {
                let spread = Spread { spread_descriptor: label.to_owned() };
                spread.key().map_err(|error| error.to_string())?;
                Ok(Self(Preference { spread: Some(spread) }))
            }
            None | Some(("", _)) => Err(r#"placement preference must be of the format "<strategy>=<arg>""#.to_owned()),
            Some((strategy, _)) => {
                Err(format!("unsupported placement preference {strategy} (only spread is supported)"))
            }
        }
    }
}

impl NewPlacementArgs {
    /// Writes what the flags say into a spec.
    pub(crate) fn apply(&self, spec: &mut Value) -> Result<(), CliError> {
        change_preferences(spec, &[], &self.placement_pref)?;
        add_resources(spec, &self.generic_resource)
    }
}

impl ChangedPlacementArgs {
    /// Writes what the flags say into a spec.
    pub(crate) fn apply(&self, spec: &mut Value) -> Result<(), CliError> {
        change_preferences(spec, &self.placement_pref_rm, &self.placement_pref_add)?;
        add_resources(spec, &self.generic_resource_add)?;
        remove_resources(spec, &self.generic_resource_rm)
    }
}

/// Their order is that in which they are nested, so what is added is innermost.
fn change_preferences(spec: &mut Value, remove: &[PreferenceFlag], add: &[PreferenceFlag]) -> Result<(), CliError> {
    if remove.is_empty() && add.is_empty() {
        return Ok(());
    }
    let place = slot(spec, &PREFERENCES);
    let mut preferences: Vec<Preference> = read(place, "placement preferences")?;
    preferences.retain(|preference| !remove.iter().any(|gone| gone.0 == *preference));
    preferences.extend(add.iter().map(|flag| flag.0.clone()));
    *place = json!(preferences);
    Ok(())
}

fn add_resources(spec: &mut Value, add: &[String]) -> Result<(), CliError> {
    if add.is_empty() {
        return Ok(());
    }
    let misused = |reason: String| Err(CliError::Misused(reason));
    let added = match GenericResources::parse(add.iter().map(String::as_str)) {
        Ok(added) => added.list(),
        Err(error) => return misused(format!("invalid generic resource specification: {error}")),
    };
    if let Some(named) = added.iter().find_map(|resource| resource.named_resource_spec.as_ref()) {
        return misused(format!(
            "invalid generic-resource request `{}={}`, Named Generic Resources is not supported for service create or update",
            named.kind, named.value
        ));
    }
    let place = slot(spec, &GENERIC_RESOURCES);
    let mut resources: Vec<GenericResource> = read(place, "generic resources")?;
    for new in added {
        match resources.iter_mut().find(|old| kind(old) == kind(&new)) {
            Some(old) => *old = new,
            None => resources.push(new),
        }
    }
    *place = json!(resources);
    Ok(())
}

fn remove_resources(spec: &mut Value, remove: &[String]) -> Result<(), CliError> {
    if remove.is_empty() {
        return Ok(());
    }
    let place = slot(spec, &GENERIC_RESOURCES);
    let mut resources: Vec<GenericResource> = read(place, "generic resources")?;
    for gone in remove {
        let count = resources.len();
        resources.retain(|resource| kind(resource) != gone);
        if resources.len() == count {
            return Err(CliError::Misused(format!("could not find generic-resource `{gone}` to remove it")));
        }
    }
    *place = json!(resources);
    Ok(())
}

/// Shows generic resources for people.
pub(crate) fn generic(resources: &[GenericResource]) -> String {
    let one = |resource: &GenericResource| match (&resource.named_resource_spec, &resource.discrete_resource_spec) {
        (Some(named), _) => format!("{}={}", named.kind, named.value),
        (None, Some(discrete)) => format!("{}={}", discrete.kind, discrete.value),
        (None, None) => String::new(),
    };
    resources.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn kind(resource: &GenericResource) -> &str {
    resource.discrete_resource_spec.as_ref().map_or("", |discrete| &discrete.kind)
}

fn read<T: serde::de::DeserializeOwned>(place: &mut Value, what: &str) -> Result<Vec<T>, CliError> {
    let list: Option<Vec<T>> = serde_json::from_value(place.take())
        .map_err(|error| CliError::Failed(format!("the service's {what} make no sense: {error}")))?;
    Ok(list.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Create {
        #[command(flatten)]
        args: NewPlacementArgs,
    }

    #[derive(Parser)]
    struct Update {
        #[command(flatten)]
        args: ChangedPlacementArgs,
    }

    fn words(line: &str) -> Vec<&str> {
        std::iter::once("x").chain(line.split_whitespace()).collect()
    }

    fn create(line: &str) -> Result<Value, String> {
        let args = Create::try_parse_from(words(line)).map_err(|error| error.to_string())?.args;
        let mut spec = json!({});
        args.apply(&mut spec).map_err(|error| error.to_string())?;
        Ok(spec["TaskTemplate"].take())
    }

    fn update(spec: &mut Value, line: &str) -> Result<(), String> {
        let args = Update::try_parse_from(words(line)).map_err(|error| error.to_string())?.args;
        args.apply(spec).map_err(|error| error.to_string())
    }

    fn spread(label: &str) -> Value {
        json!({"Spread": {"SpreadDescriptor": label}})
    }

    fn discrete(kind: &str, value: u64) -> Value {
        json!({"DiscreteResourceSpec": {"Kind": kind, "Value": value}})
    }

    #[test]
    fn a_new_service_is_as_dockers_client_sends_it() {
        assert_eq!(create(""), Ok(Value::Null));
        let line = "--placement-pref spread=node.labels.zone --placement-pref spread=engine.labels.rack --generic-resource gpu=2";
        let want = json!({"Placement": {"Preferences": [spread("node.labels.zone"), spread("engine.labels.rack")]},
            "Resources": {"Reservations": {"GenericResources": [discrete("gpu", 2)]}}});
        assert_eq!(create(line), Ok(want));
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let mut spec = json!({});
        update(&mut spec, "--placement-pref-add spread=node.labels.a --placement-pref-add spread=node.labels.b")
            .unwrap();
        update(&mut spec, "--placement-pref-rm spread=node.labels.a --placement-pref-add spread=node.labels.c")
            .unwrap();
        let preferences = &spec["TaskTemplate"]["Placement"]["Preferences"];
        assert_eq!(*preferences, json!([spread("node.labels.b"), spread("node.labels.c")]));
        update(&mut spec, "--generic-resource-add gpu=2 --generic-resource-add ssd=1").unwrap();
        update(&mut spec, "--generic-resource-add gpu=3 --generic-resource-rm ssd").unwrap();
        let resources = &spec["TaskTemplate"]["Resources"]["Reservations"]["GenericResources"];
        assert_eq!(*resources, json!([discrete("gpu", 3)]));
        let error = update(&mut spec, "--generic-resource-rm ssd").unwrap_err();
        assert!(error.contains("could not find generic-resource `ssd` to remove it"), "{error}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (line, reason) in [
            ("--placement-pref zone", r#"placement preference must be of the format "<strategy>=<arg>""#),
            ("--placement-pref pack=node.labels.a", "unsupported placement preference pack (only spread is supported)"),
            ("--placement-pref spread=node.hostname", "cannot spread over 'node.hostname'"),
            ("--generic-resource gpu", "incorrect term gpu, missing '=' or malformed expression"),
            ("--generic-resource gpu=UUID", "Named Generic Resources is not supported for service create or update"),
        ] {
            let error = create(line).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }
}
