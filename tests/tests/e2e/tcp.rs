//! The API over TCP, for whoever has a certificate and for nobody else.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use shoal_tests::lab::{Driver, IMAGE, Lab};
use shoal_tests::shoal::{Output, run};
use shoal_tests::wait::wait_until;

use crate::{START_WAIT, WAIT, check, cluster};

/// How long a client may take.
const CLIENT_WAIT: Duration = Duration::from_secs(60);

/// Certificates below a directory, each `NAME.pem` with `NAME-key.pem`.
struct Certificates<'a>(&'a Path);

impl Certificates<'_> {
    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    fn authority(&self, name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
        let mut params = CertificateParams::new([])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(self.path(&format!("{name}.pem")), authority.pem())?;
        Ok(authority)
    }

    fn issue(
        &self,
        name: &str,
        authority: &CertifiedIssuer<'static, KeyPair>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        fs::write(self.path(&format!("{name}.pem")), params.signed_by(&key, authority)?.pem())?;
        fs::write(self.path(&format!("{name}-key.pem")), key.serialize_pem())?;
        Ok(())
    }

    /// Returns flags for daemon and clients that name one of the certificates and who has to have signed the other's.
    fn flags(&self, name: &str, authority: &str) -> Vec<String> {
        [
            ("--tlscacert", self.path(&format!("{authority}.pem"))),
            ("--tlscert", self.path(&format!("{name}.pem"))),
            ("--tlskey", self.path(&format!("{name}-key.pem"))),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .chain(["--tlsverify".to_owned()])
        .collect()
    }
}

#[test]
fn clients_with_a_certificate_drive_the_cluster_over_tcp() -> Result<()> {
    let cluster = cluster(1, Driver::Embedded, |_| {})?;
    check(&cluster, over_tcp(&cluster))
}

fn over_tcp(lab: &Lab) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let certificates = Certificates(directory.path());
    let address = lab.node(1).address();
    let (ours, theirs) = (certificates.authority("ours")?, certificates.authority("theirs")?);
    let server = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![rcgen::SanType::IpAddress(address)];
    };
    certificates.issue("server", &ours, server)?;
    certificates.issue("client", &ours, |_| {})?;
    certificates.issue("expired", &ours, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1))?;
    certificates.issue("stranger", &theirs, |_| {})?;

    // An open port is refused before anything is listened on.
    let mut open = lab.node(1).command()?;
    let refused = run(
        {
            open.args(["-H", &format!("tcp://{address}")]);
            open
        },
        CLIENT_WAIT,
    )?;
    ensure!(refused.code == 1 && refused.stderr.contains("would be root on this machine"), "{refused:?}");

    let host = format!("tcp://{address}");
    let mut flags = certificates.flags("server", "ours");
    flags.extend(["--host".to_owned(), host.clone()]);
    lab.node(1).start_with(&flags)?;
    lab.node(1).wait_answers(START_WAIT)?;
    lab.load_image()?;

    let shoal = lab.node(1).shoal().binary.to_string_lossy().into_owned();
    // Docker's client takes a port that is not named for 2375, with TLS too.
    let client = Client { lab, host: &format!("{host}:2376"), home: directory.path() };
    let with = |name: &str, authority: &str| certificates.flags(name, authority);
    dockers_commands(lab, &client, &with("client", "ours"))?;
    let default_port = Client { host: &host, ..client };
    let listed =
        default_port.run(&shoal, &with("client", "ours"), &["service", "ls", "--format", "{{.Name}}"])?.success()?;
    ensure!(listed == "http\n", "{listed}");

    for (flags, want) in [
        (with("expired", "ours"), "has expired"),
        (with("stranger", "ours"), "does not know who signed this client's certificate"),
        (with("client", "theirs"), "is signed by an unknown authority"),
        (
            ["--tlsverify".to_owned(), "--tlscacert".to_owned(), certificates.path("ours.pem")].to_vec(),
            "wants a certificate of this client",
        ),
        (Vec::new(), "Client sent an HTTP request to an HTTPS server"),
    ] {
        let refused = client.run(&shoal, &flags, &["service", "ls"])?;
        ensure!(refused.code == 1 && refused.stderr.contains(want), "{flags:?}: {refused:?}");
        let refused = client.run("docker", &flags, &["service", "ls"])?;
        ensure!(refused.code == 1 && !refused.stdout.contains("http"), "{flags:?}: {refused:?}");
    }
    Ok(())
}

/// What Docker's client does by flags and by a context, and following output, which stays open.
fn dockers_commands(lab: &Lab, client: &Client<'_>, flags: &[String]) -> Result<()> {
    let docker = |args: &[&str]| client.run("docker", flags, args)?.success();
    docker(&["service", "create", "--detach", "--name", "http", "--replicas", "2", IMAGE])?;
    wait_until("two replicas run", WAIT, || Ok(lab.node(1).tasks().len() == 2))?;
    let [_, ca, _, cert, _, key, ..] = flags else { anyhow::bail!("other flags: {flags:?}") };
    let endpoint = format!("host={},ca={ca},cert={cert},key={key}", client.host);
    client.plain(&["context", "create", "lab", "--docker", &endpoint])?.success()?;
    let nodes = client.plain(&["--context", "lab", "node", "ls", "--format", "{{.Hostname}}"])?.success()?;
    ensure!(nodes == "n1\n", "{nodes}");

    let mut follow = client.command("docker");
    follow
        .args(["--context", "lab", "service", "logs", "--follow", "--raw", "http"])
        .stdout(std::process::Stdio::piped());
    let mut follow = follow.spawn()?;
    let mut first = String::new();
    let stdout = follow.stdout.take().context("no stdout")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut first)?;
    let still_follows = follow.try_wait()?.is_none();
    follow.kill()?;
    follow.wait()?;
    ensure!(!first.is_empty() && still_follows, "'{first}'");
    Ok(())
}

/// Clients beside the cluster.
#[derive(Clone, Copy)]
struct Client<'a> {
    lab: &'a Lab,
    host: &'a str,
    home: &'a Path,
}

impl Client<'_> {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let namespace = self.lab.client_namespace().unwrap_or_default();
        command.arg(format!("--net={}", namespace.display())).args(["--", program]);
        command.env("HOME", self.home).env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT");
        command
    }

    fn run(&self, program: &str, flags: &[String], args: &[&str]) -> Result<Output> {
        let mut command = self.command(program);
        command.args(["-H", self.host]).args(flags).args(args);
        run(command, CLIENT_WAIT)
    }

    /// Docker's client without a word about where the daemon is.
    fn plain(&self, args: &[&str]) -> Result<Output> {
        let mut command = self.command("docker");
        command.args(args);
        run(command, CLIENT_WAIT)
    }
}
