//! Against Debian's docker-registry, on the loopback of a network namespace of the test's own.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::super::fixture::TestImage;
use super::super::super::layout;
use super::{ImageError, ImageStore, image};

#[test]
#[ignore = "needs root"]
fn docker_registry_serves_what_was_pushed_over_http() {
    in_own_network(async |temp| {
        let registry = start(temp, "127.0.0.1:5000", "").await;
        let image = image();
        push("127.0.0.1:5000", "org/app", "v1", &image).await;
        let store = ImageStore::open(&temp.join("root"), Path::new("/nonexistent")).await.expect("open");
        assert_eq!(store.pull("localhost:5000/org/app:v1", None, |_| ()).await.expect("pull"), image.id);
        let error = store.pull("localhost:5000/org/app:v2", None, |_| ()).await.expect_err("not pushed");
        assert!(
            matches!(&error, ImageError::NotFound { detail, .. } if detail.contains("manifest unknown")),
            "{error}"
        );
        let by_digest = format!("127.0.0.1:5000/org/app@{}", image.manifest.digest);
        assert_eq!(store.pull(&by_digest, None, |_| ()).await.expect("pull"), image.id);
        drop(registry);
    });
}

#[test]
#[ignore = "needs root"]
fn docker_registry_with_tls_is_reached_through_hosts_toml() {
    in_own_network(async |temp| {
        let (cert, key) = (temp.join("cert.pem"), temp.join("key.pem"));
        let subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
        let files = ["-keyout", &text(&key), "-out", &text(&cert)].map(str::to_owned);
        let authority = ["-addext", "basicConstraints=critical,CA:FALSE"];
        run(
            "openssl",
            &[
                &["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"][..],
                &subject,
                &authority,
                &files.each_ref().map(String::as_str),
            ]
            .concat(),
        );
        let plain = start(temp, "127.0.0.1:5001", "").await;
        let image = image();
        push("127.0.0.1:5001", "app", "v1", &image).await;
        drop(plain);
        let tls = format!("  tls:\n    certificate: {}\n    key: {}\n", text(&cert), text(&key));
        let registry = start(temp, "127.0.0.1:5000", &tls).await;
        let certs = temp.join("certs.d");
        let write = |name: &str, toml: String| {
            std::fs::create_dir_all(certs.join(name)).expect("mkdir");
            std::fs::write(certs.join(name).join("hosts.toml"), toml).expect("write");
        };
        write("trusting.example", format!("server = \"https://localhost:5000\"\nca = \"{}\"\n", text(&cert)));
        write("careless.example", "server = \"https://127.0.0.1:5000\"\nskip_verify = true\n".to_owned());
        write("strict.example", "server = \"https://localhost:5000\"\n".to_owned());
        let store = ImageStore::open(&temp.join("root"), &certs).await.expect("open");
        for name in ["trusting.example/app:v1", "careless.example/app:v1"] {
            assert_eq!(store.pull(name, None, |_| ()).await.expect(name), image.id);
        }
        let error = store.pull("strict.example/app:v1", None, |_| ()).await.expect_err("untrusted");
        assert!(
            matches!(&error, ImageError::RegistryUnavailable { detail, .. } if detail.contains("certificate")),
            "{error}"
        );
        drop(registry);
    });
}

/// Runs in a thread whose network namespace has nothing but its loopback.
fn in_own_network(test: impl AsyncFn(&Path) + Send + Sync) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            host::namespace::unshare(&[host::namespace::Namespace::Net]).expect("unshare");
            run("ip", &["link", "set", "lo", "up"]);
            let temp = tempfile::tempdir().expect("temp dir");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(test(temp.path()));
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

async fn start(temp: &Path, address: &str, tls: &str) -> Registry {
    let config = temp.join("registry.yml");
    let storage = text(&temp.join("registry"));
    let yaml = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {storage}\nhttp:\n  addr: {address}\n{tls}"
    );
    std::fs::write(&config, yaml).expect("write");
    let mut registry = command("docker-registry");
    let child = registry.args(["serve", &text(&config)]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let registry = Registry(child.expect("docker-registry is installed"));
    // It tells nobody when it listens.
    for _ in 0..500 {
        if TcpStream::connect(address).await.is_ok() {
            return registry;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("docker-registry does not listen on {address}");
}

/// Uploads an image: each blob in one POST and PUT, then the manifest.
async fn push(address: &str, repository: &str, tag: &str, image: &TestImage) {
    for (digest, content) in &image.blobs {
        if *digest == image.manifest.digest {
            continue;
        }
        let head = request(address, "POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"").await;
        let location =
            head.lines().find_map(|line| line.strip_prefix("Location: ")).expect("location").trim();
        let path = location.split_once(address).map_or(location, |(_, path)| path);
        let answer =
            request(address, "PUT", &format!("{path}&digest={digest}"), "application/octet-stream", content)
                .await;
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
    let manifest = &image.blobs[&image.manifest.digest];
    let path = format!("/v2/{repository}/manifests/{tag}");
    let answer = request(address, "PUT", &path, layout::OCI_MANIFEST, manifest).await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

async fn request(address: &str, method: &str, path: &str, media_type: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connect");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answer");
    answer
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn run(program: &str, args: &[&str]) {
    assert!(
        command(program).args(args).stderr(Stdio::null()).status().expect(program).success(),
        "{program} {args:?}"
    );
}

#[expect(clippy::disallowed_methods, reason = "the real parts of these tests")]
fn command(program: &str) -> Command {
    Command::new(program)
}
