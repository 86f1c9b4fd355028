//! Certificates made on a desk, nodes prepared on their hosts, and a cluster that is put together of them.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::rig::{bound_ports, openssl, wait, workers_of_cluster};

const CLUSTER: &str = "cluster-2abcdefghij";

/// A desk with a directory of its own.
struct Desk {
    home: tempfile::TempDir,
    cluster: String,
    running: Vec<Child>,
}

impl Desk {
    fn new() -> Self {
        let home = tempfile::Builder::new().prefix("keyway-it-").tempdir().unwrap();
        Self { home, cluster: CLUSTER.to_owned(), running: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn keyway(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyway"));
        command.args(args.split(' ')).current_dir(self.home.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &str) -> Output {
        self.keyway(args).output().unwrap()
    }

    /// Runs a command that must succeed; what it printed.
    fn ok(&self, args: &str) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that cannot be meant like this; what it said.
    fn refused(&self, args: &str) -> String {
        let output = self.run(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args}: {said}");
        said
    }

    fn mode(&self, name: &str) -> u32 {
        std::fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o777
    }

    fn verify(&self, purpose: &str, certificate: &str) -> bool {
        let args = ["verify", "-x509_strict", "-CAfile", "ca/ca.crt", "-purpose", purpose, certificate];
        openssl_says(&args, self.home.path())
    }

    /// Starts what goes on running, and waits until its log says that it serves; the log.
    fn start(&mut self, args: &str, variables: &[(&str, &str)], log: &str) -> String {
        let file = std::fs::File::create(self.path(log)).unwrap();
        let mut command = self.keyway(args);
        let child = command.envs(variables.iter().copied()).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        // Kept before it is waited for: a test that fails here must not leave it behind.
        self.running.push(child);
        let log = self.path(log);
        wait(|| {
            let ended = self.running.last_mut().unwrap().try_wait().unwrap();
            let said = std::fs::read_to_string(&log).unwrap();
            assert!(ended.is_none(), "{args} did not start: {ended:?}\n{said}");
            said.contains("\"message\":\"serving\"").then_some(said)
        })
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        for mut child in self.running.drain(..).rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if !std::thread::panicking() {
            // The tokens must not be pulled from under them.
            wait(|| workers_of_cluster(&self.cluster).iter().all(|(pid, _)| !self.owns(*pid)).then_some(()));
        }
    }
}

impl Desk {
    /// Other tests may have a cluster of this name.
    fn owns(&self, worker: u32) -> bool {
        let environment = std::fs::read(format!("/proc/{worker}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&self.home.path().display().to_string())
    }
}

fn openssl_says(args: &[&str], directory: &Path) -> bool {
    Command::new("openssl").args(args).current_dir(directory).output().expect("openssl is installed").status.success()
}

#[test]
fn a_ca_signs_for_clients_and_servers_as_openssl_verifies_and_overwrites_nothing() {
    let desk = Desk::new();
    desk.ok("ca init --out ca");
    desk.ok("ca init --out another");
    assert_eq!((desk.mode("ca/ca.key"), desk.mode("ca/ca.crt"), desk.mode("ca")), (0o600, 0o644, 0o700));
    let told = desk.ok("ca issue orders --ca ca --san spiffe://example.org/orders");
    assert!(told.contains("\"spiffe://example.org/orders\""), "{told}");
    desk.ok("ca issue localhost --ca ca --server --san 127.0.0.1 --san ::1");
    desk.ok("ca issue mallory --ca another");
    assert_eq!((desk.mode("orders.key"), desk.mode("localhost.key")), (0o600, 0o600));
    assert!(desk.verify("sslclient", "orders.crt") && !desk.verify("sslserver", "orders.crt"));
    assert!(desk.verify("sslserver", "localhost.crt") && !desk.verify("sslclient", "localhost.crt"));
    assert!(!desk.verify("sslclient", "mallory.crt"));
    let text = openssl(&["x509", "-in", "localhost.crt", "-noout", "-ext", "subjectAltName"], desk.home.path());
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1"), "{text}");
    assert!(openssl_says(&["x509", "-in", "orders.crt", "-noout", "-checkend", "31449600"], desk.home.path()));
    assert!(!openssl_says(&["x509", "-in", "orders.crt", "-noout", "-checkend", "31536001"], desk.home.path()));

    let kept = ["ca/ca.crt", "ca/ca.key", "orders.crt", "orders.key"].map(|name| desk.path(name));
    let before = kept.each_ref().map(|path| std::fs::read(path).unwrap());
    for again in ["ca init --out ca", "ca issue orders --ca ca"] {
        assert!(desk.refused(again).contains("not overwritten"), "{again}");
    }
    assert_eq!(kept.map(|path| std::fs::read(path).unwrap()), before);
    for (wrong, field) in [
        ("ca issue ../../x --ca ca", "NAME"),
        ("ca issue x --ca ca --days 4000", "--days"),
        ("ca issue x --ca ca --san not/a/name", "--san"),
        ("ca issue no_host! --ca ca --server", "DNS name or an IP address"),
        ("ca issue x --ca nowhere", "nowhere/ca.crt"),
    ] {
        let said = desk.refused(wrong);
        assert!(said.contains(field), "{wrong}: {said}");
    }
}

#[test]
fn a_request_of_openssls_is_signed_for_the_names_that_were_agreed_on_and_no_others() {
    let desk = Desk::new();
    desk.ok("ca init --out ca");
    let request = |name: &str, key: &[&str], digest: &str, more: &[&str]| {
        let out = format!("{name}.csr");
        let args = ["req", "-new", "-nodes", "-keyout", "key.pem", "-out", &out, digest];
        let args = [&args[..], key, &["-subj", "/O=Example/CN=hsm-1.example.org"], more].concat();
        openssl(&args, desk.home.path());
    };
    let p256 = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let p384 = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"];
    let san = ["-addext", "subjectAltName=DNS:hsm-1.example.org"];
    for (name, key, digest) in
        [("p256", &p256[..], "-sha256"), ("p384", &p384, "-sha384"), ("rsa", &["-newkey", "rsa:2048"], "-sha256")]
    {
        request(name, key, digest, &san);
        desk.ok(&format!("ca issue hsm-1.example.org --ca ca --server --csr {name}.csr --out {name}"));
        let certificate = format!("{name}/hsm-1.example.org.crt");
        assert!(desk.verify("sslserver", &certificate), "{name}");
        let text = openssl(&["x509", "-in", &certificate, "-noout", "-subject"], desk.home.path());
        assert!(String::from_utf8(text).unwrap().contains("O = Example"), "its subject is the request's");
        let public = |args: &[&str]| openssl(args, desk.home.path());
        assert_eq!(
            public(&["x509", "-in", &certificate, "-noout", "-pubkey"]),
            public(&["pkey", "-in", "key.pem", "-pubout"])
        );
    }
    // A request for more than was agreed on, for less, for a CA's, or with a key that would be written down wrong.
    request("more", &p256, "-sha256", &["-addext", "subjectAltName=DNS:hsm-1.example.org,DNS:admin"]);
    request("less", &p256, "-sha256", &san);
    request("ca", &p256, "-sha256", &["-addext", "basicConstraints=critical,CA:TRUE"]);
    request("mixed", &p384, "-sha256", &san);
    for (csr, more, why) in [
        ("more", "", "asks for the name \"admin\""),
        ("less", "--san hsm-2.example.org", "does not ask for the name \"hsm-2.example.org\""),
        ("ca", "", "a CA's certificate"),
        ("mixed", "", "P-384, signed with SHA-384"),
    ] {
        let said =
            desk.refused(format!("ca issue hsm-1.example.org --ca ca --server --csr {csr}.csr {more}").trim_end());
        assert!(said.contains(why), "{csr}: {said}");
        assert!(!desk.path("hsm-1.example.org.crt").exists());
    }
}

#[test]
fn a_ca_of_openssls_signs_as_well_and_with_its_own_key_alone() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("ca")).unwrap();
    let ca = ["req", "-new", "-x509", "-days", "400", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=customer"];
    let files = ["-keyout", "ca/ca.key", "-out", "ca/ca.crt", "-addext", "keyUsage=critical,keyCertSign"];
    openssl(&[&ca[..], &files].concat(), desk.home.path());
    desk.ok("ca issue hsm-1.example.org --ca ca --server");
    assert!(desk.verify("sslserver", "hsm-1.example.org.crt"));
    assert!(desk.refused("ca issue x --ca ca --days 401").contains("does not outlive its CA"));
    openssl(&["genrsa", "-traditional", "-out", "ca/ca.key", "2048"], desk.home.path());
    assert!(desk.refused("ca issue x --ca ca").contains("not that of the CA's certificate"));
}

#[test]
fn preparing_a_node_again_keeps_its_key_and_its_pin_and_says_so() {
    let desk = Desk::new();
    let init =
        |hsm: &str, name: &str| format!("node init --cluster {CLUSTER} --hsm {hsm} --name {name} --data-dir node");
    let told = desk.ok(&init("hsm-1", "127.0.0.1"));
    assert!(told.contains("node/so-pin") && told.contains("keyway ca issue 127.0.0.1"), "{told}");
    assert_eq!((desk.mode("node"), desk.mode("node/so-pin"), desk.mode("node/node.key")), (0o700, 0o600, 0o600));
    let files = ["so-pin", "node.key", "node.csr", "node.toml", "kmsuser/softhsm2.conf"];
    let read = || files.map(|name| std::fs::read(desk.path("node").join(name)).unwrap());
    let before = read();
    std::fs::remove_file(desk.path("node/node.toml")).unwrap();
    let told = desk.ok(&init("hsm-1", "127.0.0.1"));
    assert!(told.contains("node/node.key, which was there") && told.contains("made"), "{told}");
    assert_eq!(read(), before);
    assert!(desk.refused(&init("hsm-2", "127.0.0.1")).contains("another HSM"));
    assert!(desk.refused(&init("hsm-1", "hsm-1.example.org")).contains("another name"));
    assert_eq!(read(), before);
}

#[test]
fn a_cluster_is_put_together_of_prepared_nodes_and_certificates_from_a_desk() {
    let mut desk = Desk::new();
    for ca in ["customer", "daemons", "clients"] {
        desk.ok(&format!("ca init --out {ca} --name {ca}"));
    }
    desk.ok("ca issue keyway-daemon --ca daemons");
    desk.ok("ca issue localhost --ca clients --server");
    desk.ok("ca issue ops --ca clients");
    desk.ok("ca issue stranger --ca daemons");
    let mut nodes = String::new();
    for (hsm, zone) in [("hsm-1", 'a'), ("hsm-2", 'b')] {
        let [sessions, identity, administration] = start_node(&mut desk, hsm);
        nodes += &format!(
            "\n[clusters.{CLUSTER}.nodes.{hsm}]\nzone = \"us-east-1{zone}\"\naddress = \"127.0.0.1\"\nmanages_users = true\n\
             session_port = {sessions}\nidentity_port = {identity}\nadministration_port = {administration}\n"
        );
    }
    let configuration = format!(
        "data_dir = \"data\"\nsealing_key_file = \"sealing.key\"\nlog = {{ format = \"json\" }}\n\
         node_client = {{ certificate = \"keyway-daemon.crt\", private_key = \"keyway-daemon.key\" }}\n\
         [grpc]\nunix_socket = \"keyway.sock\"\nlisten = \"127.0.0.1:0\"\n\
         tls = {{ certificate = \"localhost.crt\", private_key = \"localhost.key\", client_ca = \"clients/ca.crt\" }}\n\
         [authz]\nadmins = [\"ops\"]\n\
         [clusters.{CLUSTER}]\nregion = \"us-east-1\"\naccount = \"000000000000\"\ntrust_anchor = \"customer/ca.crt\"\n\
         sync = \"wrap\"\nprofile = \"softhsm2\"\n{nodes}"
    );
    std::fs::write(desk.path("keyway.toml"), configuration).unwrap();
    std::fs::write(desk.path("password"), "letters4andmore\n").unwrap();
    let log = desk.start("serve --config keyway.toml", &[], "daemon.log");
    let address = crate::rig::bound_address(&log).unwrap().replace("127.0.0.1", "localhost");
    let as_ops = format!("--addr https://{address} --cacert clients/ca.crt --cert ops.crt --key ops.key");

    assert!(desk.ok(&format!("{as_ops} whoami")).contains("ops"), "the client that was issued is let in");
    let stranger = as_ops.replace("ops.", "stranger.");
    assert!(!desk.run(&format!("{stranger} whoami")).status.success(), "another CA's is not");

    let made = desk.ok(&format!("{as_ops} crypto-user create {CLUSTER} kmsuser --password-file password"));
    assert!(made.contains("2/2"), "{made}");
    let with = "--trust-anchor-certificate customer/ca.crt --password-file password";
    desk.ok(&format!("{as_ops} key-store create --name main --cluster-id {CLUSTER} {with}"));
    desk.ok(&format!("{as_ops} key-store connect --name main --wait"));
    desk.ok(&format!("{as_ops} key create --key-store main --alias alias/main"));
    std::fs::write(desk.path("plaintext"), "attack at dawn").unwrap();
    desk.ok(&format!("{as_ops} encrypt --key alias/main plaintext ciphertext"));
    desk.ok(&format!("{as_ops} decrypt ciphertext decrypted"));
    assert_eq!(std::fs::read(desk.path("decrypted")).unwrap(), b"attack at dawn");
    desk.ok(&format!("{as_ops} key-store disconnect --name main --wait"));
}

/// Prepares a node and starts it: its ports for links, identity and administration.
fn start_node(desk: &mut Desk, hsm: &str) -> [u16; 3] {
    let cluster = desk.cluster.clone();
    desk.ok(&format!("node init --cluster {cluster} --hsm {hsm} --name 127.0.0.1 --data-dir {hsm}"));
    desk.ok(&format!("ca issue 127.0.0.1 --ca customer --server --csr {hsm}/node.csr --out {hsm}"));
    std::fs::rename(desk.path(hsm).join("127.0.0.1.crt"), desk.path(hsm).join("node.crt")).unwrap();
    std::fs::copy(desk.path("daemons/ca.crt"), desk.path(hsm).join("daemons-ca.crt")).unwrap();
    let free = ["SESSION_PORT", "IDENTITY_PORT", "ADMINISTRATION_PORT"].map(|port| format!("KEYWAY__{port}"));
    let mut variables: Vec<_> = free.iter().map(|port| (port.as_str(), "0")).collect();
    variables.extend([("KEYWAY__LISTEN", "127.0.0.1"), ("KEYWAY__LOG__FORMAT", "json")]);
    let log = desk.start(&format!("node --config {hsm}/node.toml"), &variables, &format!("{hsm}.log"));
    bound_ports(&log).unwrap().iter().map(SocketAddr::port).collect::<Vec<_>>().try_into().unwrap()
}

/// As `keyway cluster add-hsm` is told where it is.
fn flags([sessions, identity, administration]: [u16; 3]) -> String {
    let ports = format!("--session-port {sessions} --identity-port {identity} --administration-port {administration}");
    format!("--address 127.0.0.1 {ports}")
}

#[test]
fn a_cluster_is_made_of_nodes_on_other_hosts_and_grows_while_it_is_connected() {
    let mut desk = Desk::new();
    for ca in ["customer", "daemons"] {
        desk.ok(&format!("ca init --out {ca} --name {ca}"));
    }
    desk.ok("ca issue keyway-daemon --ca daemons");
    let configuration = "data_dir = \"data\"\nsealing_key_file = \"sealing.key\"\nlog = { format = \"json\" }\n\
         node_client = { certificate = \"keyway-daemon.crt\", private_key = \"keyway-daemon.key\" }\n\
         grpc.unix_socket = \"keyway.sock\"\nauthz.admins = [\"nobody\"]\n\
         made_clusters = { region = \"us-east-1\", account = \"000000000000\" }\n";
    std::fs::write(desk.path("keyway.toml"), configuration).unwrap();
    std::fs::write(desk.path("password"), "letters4andmore\n").unwrap();
    desk.start("serve --config keyway.toml", &[], "daemon.log");
    let keyway = format!("--addr unix:{} --output json", desk.path("keyway.sock").display());
    let json = |desk: &Desk, args: &str| -> serde_json::Value {
        serde_json::from_str(&desk.ok(&format!("{keyway} {args}"))).unwrap()
    };
    let subnets = ["a", "b", "c"].map(|zone| format!(" --subnet subnet-{zone}=us-east-1{zone}")).concat();
    let created = json(&desk, &format!("cluster create{subnets}"));
    let cluster = created["cluster"]["clusterId"].as_str().unwrap().to_owned();
    desk.cluster.clone_from(&cluster);
    let hsms = |desk: &Desk| json(desk, &format!("cluster describe {cluster}"))["clusters"][0]["hsms"].clone();
    let active = |hsms: serde_json::Value| {
        hsms.as_array().unwrap().iter().filter(|hsm| hsm["state"] == "HSM_STATE_ACTIVE").count()
    };

    let mut reached = Vec::new();
    for (hsm, zone) in [("hsm-1", 'a'), ("hsm-2", 'b')] {
        let address = flags(start_node(&mut desk, hsm));
        let added = json(&desk, &format!("cluster add-hsm {cluster} --zone us-east-1{zone} --hsm-id {hsm} {address}"));
        assert_eq!(added["hsm"]["state"], "HSM_STATE_CREATE_IN_PROGRESS");
        let why = added["hsm"]["healthReason"].as_str().unwrap();
        assert!(why.contains("once the cluster is initialized"), "{why}");
        reached.push(address);
    }
    let twin = desk.run(&format!("{keyway} cluster add-hsm {cluster} --zone us-east-1c --hsm-id hsm-9 {}", reached[0]));
    let said = String::from_utf8(twin.stderr).unwrap();
    assert!(!twin.status.success() && said.contains("ALREADY_EXISTS") && said.contains("hsm-1"), "{said}");

    json(&desk, &format!("cluster init {cluster} --out customer"));
    wait(|| (active(hsms(&desk)) == 2).then_some(()));
    json(&desk, &format!("crypto-user create {cluster} kmsuser --password-file password"));
    let with = "--trust-anchor-certificate customer/ca.crt --password-file password";
    json(&desk, &format!("key-store create --name main --cluster-id {cluster} {with}"));
    desk.ok(&format!("{keyway} key-store connect main --wait"));
    json(&desk, "key create --key-store main --alias alias/main");

    let third = flags(start_node(&mut desk, "hsm-3"));
    json(&desk, &format!("cluster add-hsm {cluster} --zone us-east-1c --hsm-id hsm-3 {third}"));
    wait(|| {
        let healthy = |hsm: &serde_json::Value| hsm["health"] == "HSM_HEALTH_HEALTHY";
        let hsms = hsms(&desk);
        (hsms.as_array().unwrap().len() == 3 && hsms.as_array().unwrap().iter().all(healthy)).then_some(())
    });
    std::fs::write(desk.path("plaintext"), "attack at dawn").unwrap();
    desk.ok(&format!("{keyway} encrypt --key alias/main plaintext ciphertext"));
    wait(|| desk.run(&format!("{keyway} cluster remove-hsm {cluster} hsm-1")).status.success().then_some(()));
    wait(|| (hsms(&desk).as_array().unwrap().len() == 2).then_some(()));
    desk.ok(&format!("{keyway} cluster drain {cluster} hsm-2"));
    desk.ok(&format!("{keyway} decrypt ciphertext decrypted"));
    assert_eq!(std::fs::read(desk.path("decrypted")).unwrap(), b"attack at dawn", "hsm-3 alone has the key");
    assert!(desk.path("hsm-1/kmsuser/tokens").read_dir().unwrap().next().is_some(), "its token stays with its node");
}
