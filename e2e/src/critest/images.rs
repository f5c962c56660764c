//! The images that critest names, made from this machine's own packages and pushed once to a registry's storage.
//!
//! They behave as the public ones as far as the suite looks; their digests differ, so the one spec that pulls by the
//! public digest cannot pass on any runtime.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::image::{ImageConfig, Layer, busybox_config, busybox_layer, write_layout};
use crate::program::{effective_user, pause};
use crate::registry::Registry;
use crate::test_host::TestHost;

/// The storage of a registry that holds them.
pub struct Images {
    host: TestHost,
}

impl Images {
    /// Makes and pushes all of them.
    ///
    /// # Errors
    /// When a package is missing (`hack/setup.sh test` installs it), or skopeo fails.
    pub fn publish() -> Result<Self> {
        let images = Self { host: TestHost::new()? };
        let registry = Registry::serve(&images.host, &images.storage())?;
        for image in all()? {
            let layout = images.host.path().join("layout");
            write_layout(&layout, image.names[0], image.layers, &image.config)?;
            for name in image.names {
                registry.push(&images.host, &layout, name)?;
            }
            std::fs::remove_dir_all(&layout).context("remove the layout")?;
        }
        Ok(images)
    }

    /// Where the registry's files are.
    #[must_use]
    pub fn storage(&self) -> PathBuf {
        self.host.path().join("registry")
    }
}

struct TestImage {
    names: &'static [&'static str],
    layers: Vec<Layer>,
    config: ImageConfig,
}

fn all() -> Result<Vec<TestImage>> {
    let mut all = vec![
        TestImage {
            names: &["e2e-test-images/busybox:1.29-2"],
            layers: vec![busybox_layer()?, programs()?],
            config: busybox_config(),
        },
        nginx(&["e2e-test-images/nginx:1.14-2"], 80)?,
        nginx(
            &["k8s-staging-cri-tools/hostnet-nginx-amd64", "k8s-staging-cri-tools/hostnet-nginx-arm64"],
            12003,
        )?,
        httpd()?,
        TestImage {
            names: &["e2e-test-images/nonewprivs:1.3"],
            layers: vec![Layer::default().file("nonewprivs", 0o4755, &effective_user()?)?],
            config: entrypoint(&["/nonewprivs"]),
        },
        TestImage {
            names: &["pause:3.9"],
            layers: vec![Layer::default().file("pause", 0o755, pause()?)?, marker("pause")?],
            config: entrypoint(&["/pause"]),
        },
    ];
    let plain: [&'static [&'static str]; 6] = [
        &["k8s-staging-cri-tools/test-image-latest:latest"],
        &["k8s-staging-cri-tools/test-image-tag:test", "k8s-staging-cri-tools/test-image-tag:all"],
        &["k8s-staging-cri-tools/test-image-1:latest"],
        &["k8s-staging-cri-tools/test-image-2:latest"],
        &["k8s-staging-cri-tools/test-image-3:latest"],
        &[
            "k8s-staging-cri-tools/test-image-tags:1",
            "k8s-staging-cri-tools/test-image-tags:2",
            "k8s-staging-cri-tools/test-image-tags:3",
        ],
    ];
    for names in plain {
        all.push(TestImage {
            names,
            layers: vec![busybox_layer()?, marker(names[0])?],
            config: busybox_config(),
        });
    }
    let users: [(&'static [&'static str], &str); 5] = [
        (&["k8s-staging-cri-tools/test-image-user-uid"], "1002"),
        (&["k8s-staging-cri-tools/test-image-user-username"], "www-data"),
        (&["k8s-staging-cri-tools/test-image-user-uid-group"], "1003:users"),
        (&["k8s-staging-cri-tools/test-image-user-username-group"], "www-data:100"),
        (&["k8s-staging-cri-tools/test-image-predefined-group"], "1000"),
    ];
    for (names, user) in users {
        let config = ImageConfig { user: user.to_owned(), ..busybox_config() };
        all.push(TestImage { names, layers: vec![busybox_layer()?, accounts()?], config });
    }
    Ok(all)
}

/// What busybox lacks, and an `ls` of its own: a path that a spec masks.
fn programs() -> Result<Layer> {
    ["/bin/ls", "/usr/bin/ipcs", "/usr/bin/pgrep"].into_iter().try_fold(Layer::default(), Layer::program)
}

fn entrypoint(words: &[&str]) -> ImageConfig {
    ImageConfig { entrypoint: words.iter().map(|&word| word.to_owned()).collect(), ..busybox_config() }
}

/// A layer that makes an image differ from others.
fn marker(name: &str) -> Result<Layer> {
    Layer::default().file("this-image", 0o644, name.as_bytes())
}

/// User 1000 is also in group 50000.
fn accounts() -> Result<Layer> {
    Layer::default()
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\ndefault-user:x:1000:1000::/home/default-user:/bin/sh\n")?
        .file("etc/group", 0o644, b"root:x:0:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")
}

/// Debian's nginx with a page on `port`.
fn nginx(names: &'static [&'static str], port: u16) -> Result<TestImage> {
    let configuration = format!(
        "user root;\nworker_processes 1;\npid /var/run/nginx.pid;\nerror_log stderr;\nevents {{}}\n\
         http {{ access_log /dev/stdout; server {{ listen {port}; root /www; }} }}\n"
    );
    let layer = Layer::default()
        .program("/usr/sbin/nginx")?
        .directory("var/", 0o755)?
        .directory("var/run/", 0o755)?
        .directory("var/log/", 0o755)?
        .directory("var/log/nginx/", 0o755)?
        .directory("var/lib/", 0o755)?
        .directory("var/lib/nginx/", 0o755)?
        .directory("etc/nginx/", 0o755)?
        .file("etc/nginx/nginx.conf", 0o644, configuration.as_bytes())?
        .directory("www/", 0o755)?
        .file("www/index.html", 0o644, b"<html><title>Welcome to nginx!</title></html>\n")?;
    let command = ["nginx", "-g", "daemon off;"].map(str::to_owned).into();
    Ok(TestImage {
        names,
        layers: vec![busybox_layer()?, layer],
        config: ImageConfig { command, ..busybox_config() },
    })
}

/// A web server on port 80 that says its name when it starts.
fn httpd() -> Result<TestImage> {
    let layer = Layer::default()
        .directory("www/", 0o755)?
        .file("www/index.html", 0o644, b"<html><body><h1>It works!</h1></body></html>\n")?
        .file("serve", 0o755, b"#!/bin/sh\necho httpd: serving on port 80\nexec httpd -f -p 80 -h /www\n")?;
    Ok(TestImage {
        names: &["e2e-test-images/httpd:2.4.39-4"],
        layers: vec![busybox_layer()?, layer],
        config: entrypoint(&["/serve"]),
    })
}
