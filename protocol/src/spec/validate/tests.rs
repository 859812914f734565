use super::*;

/// What `docker service create --name plain lab/web:1` of Docker 28.2 sends, with `patch` laid over it.
fn spec(patch: &str) -> String {
    let mut base = serde_json::json!({
        "Name": "plain", "Labels": {}, "TaskTemplate": {
            "ContainerSpec": {"Image": "lab/web:1", "Init": false, "DNSConfig": {}, "Isolation": "default"},
            "Resources": {"Limits": {}, "Reservations": {}}, "Placement": {}, "ForceUpdate": 0, "Runtime": "container"},
        "Mode": {"Replicated": {}}, "EndpointSpec": {"Mode": "vip"}
    });
    overlay(&mut base, serde_json::from_str(patch).unwrap());
    base.to_string()
}

fn overlay(base: &mut Value, patch: Value) {
    match (base, patch) {
        (Value::Object(base), Value::Object(patch)) => {
            for (name, member) in patch {
                overlay(base.entry(name).or_insert(Value::Null), member);
            }
        }
        (base, patch) => *base = patch,
    }
}

#[test]
fn what_is_acted_on_passes() {
    for patch in [
        "{}",
        r#"{"Labels":{"a":"b"},"TaskTemplate":{"ContainerSpec":{"Labels":{"c":"d"},"Env":["A=1"],"Args":["x"],"ReadOnly":true}}}"#,
        r#"{"TaskTemplate":{"ContainerSpec":{"Privileges":{"CredentialSpec":null,"SELinuxContext":null,"NoNewPrivileges":false}}}}"#,
        r#"{"TaskTemplate":{"Networks":[],"LogDriver":null,"ContainerSpec":{"Mounts":null,"Healthcheck":{},"OomScoreAdj":0}}}"#,
        r#"{"TaskTemplate":{"Resources":{"Limits":{"MemoryBytes":4194304,"NanoCPUs":1000000,"Pids":5}}}}"#,
        r#"{"TaskTemplate":{"Placement":{"Constraints":["node.role == worker"],"MaxReplicas":2}}}"#,
        r#"{"TaskTemplate":{"Placement":{"Preferences":[{"Spread":{"SpreadDescriptor":"node.labels.zone"}}]}}}"#,
        r#"{"TaskTemplate":{"Resources":{"Reservations":{"GenericResources":[{"DiscreteResourceSpec":{"Kind":"gpu","Value":2}}]}}}}"#,
        r#"{"TaskTemplate":{"RestartPolicy":{"Condition":"on-failure","Delay":1,"MaxAttempts":3}}}"#,
        r#"{"Mode":{"Replicated":null,"Global":{}}}"#,
        r#"{"Mode":{"Replicated":null,"GlobalJob":{}}}"#,
        r#"{"Mode":{"Replicated":null,"ReplicatedJob":{"MaxConcurrent":2,"TotalCompletions":5}}}"#,
        r#"{"UpdateConfig":{"Parallelism":0,"FailureAction":"continue","Order":"start-first","MaxFailureRatio":0.5}}"#,
        r#"{"UpdateConfig":{"FailureAction":"rollback"}}"#,
        r#"{"RollbackConfig":{"Parallelism":2,"FailureAction":"continue","MaxFailureRatio":0.1,"Order":"start-first"}}"#,
        r#"{"EndpointSpec":{"Mode":"dnsrr","Ports":[{"TargetPort":80,"PublishedPort":8080,"PublishMode":"host"}]}}"#,
        r#"{"Name":"st_web"}"#,
        r#"{"TaskTemplate":{"ContainerSpec":{"Mounts":[{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true,
            "Consistency":"default","BindOptions":{"Propagation":"rshared","NonRecursive":true,"CreateMountpoint":false}},
            {"Type":"volume","Source":"vv","Target":"/v","VolumeOptions":{"NoCopy":true,"Labels":{"a":"b"},"DriverConfig":
            {"Name":"local","Options":{}}}},{"Type":"volume","Target":"/anonymous"},{"Type":"tmpfs","Target":"/t",
            "TmpfsOptions":{"SizeBytes":1048576,"Mode":511}}]}}}"#,
    ] {
        let read = ServiceSpec::parse(&spec(patch));
        assert!(read.is_ok(), "{patch}: {read:?}");
    }
}

#[test]
fn jobs_that_make_no_sense_are_refused() {
    for (patch, want) in [
        (r#"{"Mode":{"GlobalJob":{}}}"#, "must specify only one service mode"),
        (
            r#"{"Mode":{"Replicated":null,"ReplicatedJob":{"TotalCompletions":100001}}}"#,
            "100001 completions are more than the limit of 100000",
        ),
        (
            r#"{"Mode":{"Replicated":null,"ReplicatedJob":{"TotalCompletions":1,"MaxConcurrent":0}}}"#,
            "a job of which no task may run never completes: MaxConcurrent must be at least 1",
        ),
        (r#"{"Mode":{"Replicated":null,"GlobalJob":{}},"UpdateConfig":{}}"#, "Jobs may not have an update config"),
        (
            r#"{"Mode":{"Replicated":null,"ReplicatedJob":{}},"RollbackConfig":{}}"#,
            "Jobs may not have a rollback config",
        ),
    ] {
        assert_eq!(ServiceSpec::parse(&spec(patch)), Err(SpecError::Invalid(want.to_owned())), "{patch}");
    }
}

#[test]
fn placement_and_resources_that_make_no_sense_are_refused() {
    for (patch, want) in [
        (
            r#"{"TaskTemplate":{"Placement":{"Preferences":[{"Spread":{"SpreadDescriptor":"node.hostname"}}]}}}"#,
            "placement preference: cannot spread over 'node.hostname': expected node.labels.NAME or engine.labels.NAME",
        ),
        (
            r#"{"TaskTemplate":{"Placement":{"Preferences":[{},{},{},{},{},{},{},{},{}]}}}"#,
            "9 placement preferences are more than the limit of 8",
        ),
        (
            r#"{"TaskTemplate":{"Resources":{"Reservations":{"GenericResources":[{"NamedResourceSpec":{"Kind":"gpu","Value":"a"}}]}}}}"#,
            "invalid argument for resource gpu",
        ),
    ] {
        assert_eq!(ServiceSpec::parse(&spec(patch)), Err(SpecError::Invalid(want.to_owned())), "{patch}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (patch, want) in [
        (r#"{"Name":"badname!"}"#, "name must be valid as a DNS name component"),
        (r#"{"Name":""}"#, "name must be valid as a DNS name component"),
        (r#"{"Name":"-a"}"#, "name must be valid as a DNS name component"),
        (r#"{"Name":"a.b"}"#, "name must be valid as a DNS name component"),
        (r#"{"TaskTemplate":{"ContainerSpec":{"Image":""}}}"#, "ContainerSpec: image reference must be provided"),
        (r#"{"RollbackConfig":{"FailureAction":"rollback"}}"#, "unrecognized rollback failure action rollback"),
        (r#"{"TaskTemplate":{"ContainerSpec":null}}"#, "ContainerSpec: image reference must be provided"),
        (
            r#"{"TaskTemplate":{"Resources":{"Limits":{"MemoryBytes":1024}}}}"#,
            "invalid memory value 1024: Must be at least 4MiB",
        ),
        (
            r#"{"TaskTemplate":{"Resources":{"Reservations":{"NanoCPUs":1000}}}}"#,
            "invalid cpu value 0.000001: Must be at least 0.001",
        ),
        (
            r#"{"TaskTemplate":{"Placement":{"Constraints":["node.role"]}}}"#,
            "constraint expected one operator from ==, !=",
        ),
        (r#"{"Mode":{"Replicated":{},"Global":{}}}"#, "must specify only one service mode"),
        (r#"{"Mode":{"Replicated":{"Replicas":100001}}}"#, "100001 replicas are more than the limit of 100000"),
        (r#"{"UpdateConfig":{"FailureAction":"cry"}}"#, "unrecognized update failure action cry"),
        (r#"{"UpdateConfig":{"Order":"none"}}"#, "unrecognized update order none"),
        (
            r#"{"UpdateConfig":{"MaxFailureRatio":1.5}}"#,
            "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
        ),
        (
            r#"{"EndpointSpec":{"Mode":"dnsrr","Ports":[{"TargetPort":80,"PublishedPort":80}]}}"#,
            "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
        ),
        (
            r#"{"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":80},{"TargetPort":81,"PublishedPort":80}]}}"#,
            "EndpointSpec: duplicate published ports provided",
        ),
        (r#"{"EndpointSpec":{"Ports":[{"PublishedPort":80}]}}"#, "EndpointSpec: target port must be provided"),
        (r#"{"EndpointSpec":{"Mode":"magic"}}"#, "unrecognized endpoint mode magic"),
        (
            r#"{"TaskTemplate":{"ContainerSpec":{"Mounts":[{"Type":"bind","Source":"a","Target":"/b"}]}}}"#,
            "invalid bind mount source, must be an absolute path: a",
        ),
    ] {
        assert_eq!(ServiceSpec::parse(&spec(patch)), Err(SpecError::Invalid(want.to_owned())), "{patch}");
    }
    let long = format!(r#"{{"Name":"{}"}}"#, "a".repeat(64));
    assert_eq!(ServiceSpec::parse(&spec(&long)).unwrap_err().to_string(), "name must be 63 characters or fewer");
    for (json, want) in [
        ("[]", "spec is not a JSON object"),
        ("{", "spec is not JSON"),
        (&spec(r#"{"TaskTemplate":{"RestartPolicy":{"Delay":-1}}}"#), "spec is malformed"),
        (&spec(r#"{"TaskTemplate":{"RestartPolicy":{"Condition":"x"}}}"#), "spec is malformed"),
        (&spec(r#"{"EndpointSpec":{"Ports":[{"TargetPort":70000}]}}"#), "spec is malformed"),
        (&spec(r#"{"TaskTemplate":"x"}"#), "spec is malformed"),
        (&" ".repeat(SPEC_BYTES_MAX + 1), "spec of 262145 bytes is larger"),
    ] {
        let error = ServiceSpec::parse(json).unwrap_err().to_string();
        assert!(error.starts_with(want), "{error}");
    }
}

#[test]
fn what_is_not_acted_on_is_refused_by_name() {
    let container = |field: &str| format!(r#"{{"TaskTemplate":{{"ContainerSpec":{{{field}}}}}}}"#);
    let mount = |fields: &str| container(&format!(r#""Mounts":[{{{fields},"Target":"/d"}}]"#));
    for (patch, want) in [
        (r#"{"Networks":[{"Target":"ov"}]}"#.to_owned(), "networks outside of the task template are"),
        (
            r#"{"TaskTemplate":{"Networks":[{"Target":"ov","DriverOpts":{"a":"b"}}]}}"#.to_owned(),
            "driver options of network attachments are",
        ),
        (container(r#""DNSConfig":{"Novelty":1}"#), "TaskTemplate.ContainerSpec.DNSConfig.Novelty is"),
        (container(r#""Ulimits":[{"Novelty":1}]"#), "TaskTemplate.ContainerSpec.Ulimits.Novelty is"),
        (r#"{"TaskTemplate":{"Runtime":"plugin"}}"#.to_owned(), "task runtimes other than 'container' are"),
        (
            r#"{"TaskTemplate":{"Placement":{"Preferences":[{"Spread":{"Novelty":1}}]}}}"#.to_owned(),
            "TaskTemplate.Placement.Preferences.Spread.Novelty is",
        ),
        (
            r#"{"TaskTemplate":{"Resources":{"Limits":{"GenericResources":[{"DiscreteResourceSpec":{"Kind":"gpu"}}]}}}}"#
                .to_owned(),
            "limits of generic resources are",
        ),
        (r#"{"EndpointSpec":{"Ports":[{"TargetPort":53,"Protocol":"sctp"}]}}"#.to_owned(), "sctp ports are"),
        (r#"{"Novelty":{"A":1}}"#.to_owned(), "Novelty is"),
        (r#"{"TaskTemplate":{"Placement":{"Novelty":true}}}"#.to_owned(), "TaskTemplate.Placement.Novelty is"),
        (mount(r#""Type":"npipe","Source":"a""#), "mounts of type 'npipe' are"),
        (mount(r#""Type":"cluster","Source":"csi-v""#), "mounts of type 'cluster' are"),
        (mount(r#""Type":"image","Source":"i""#), "mounts of type 'image' are"),
        (mount(r#""Type":"tmpfs","Consistency":"cached""#), "the consistency of mounts is"),
        (
            mount(r#""Type":"bind","Source":"/a","BindOptions":{"CreateMountpoint":true}"#),
            "creating a bind mount's source is",
        ),
        (mount(r#""Type":"volume","VolumeOptions":{"Subpath":"a"}"#), "a part of a volume as a mount is"),
        (mount(r#""Type":"volume","VolumeOptions":{"DriverConfig":{"Name":"nfs"}}"#), "the volume driver 'nfs' is"),
        (
            mount(r#""Type":"volume","VolumeOptions":{"DriverConfig":{"Options":{"type":"nfs"}}}"#),
            "options of volume drivers are",
        ),
        (mount(r#""Type":"tmpfs","TmpfsOptions":{"Options":[["exec"]]}"#), "further options of a tmpfs are"),
        (mount(r#""Type":"tmpfs","Novelty":1"#), "TaskTemplate.ContainerSpec.Mounts.Novelty is"),
        (container(r#""Healthcheck":{"Novelty":1}"#), "TaskTemplate.ContainerSpec.Healthcheck.Novelty is"),
        (container(r#""OpenStdin":true"#), "an open standard input is"),
        (container(r#""Isolation":"hyperv""#), "isolation modes other than 'default' are"),
        (container(r#""Privileges":{"NoNewPrivileges":true}"#), "privileges are"),
    ] {
        assert_eq!(ServiceSpec::parse(&spec(&patch)), Err(SpecError::Unsupported(want.to_owned())), "{patch}");
    }
}

#[test]
fn the_template_is_cut_out_as_sent() {
    let json = r#"{"Name":"a","TaskTemplate":{"ContainerSpec":{"Image":"x","Init":false},"ForceUpdate":2}}"#;
    let template: Value = serde_json::from_str(&task_template_json(json).unwrap()).unwrap();
    assert_eq!(template, serde_json::json!({"ContainerSpec":{"Image":"x","Init":false},"ForceUpdate":2}));
    assert_eq!(task_template_json("{}").unwrap(), "{}");
}

#[test]
fn an_update_policy_with_gaps_is_filled_in() {
    let spec =
        ServiceSpec::parse(&spec(r#"{"UpdateConfig":{"Parallelism":2,"FailureAction":"","Monitor":0}}"#)).unwrap();
    assert_eq!(spec.update_policy(), UpdateConfig { parallelism: 2, ..UpdateConfig::default() });
}
