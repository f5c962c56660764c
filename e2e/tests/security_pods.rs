//! What hostile pods tried through what a client asks of the runtime for them, named after what went wrong elsewhere.

use std::path::Path;

use anyhow::{Context, Result};
use cri::v1::ReopenContainerLogRequest;
use e2e::cri_server::{CriServer, Implementation};
use e2e::requests::{container, create, exec, pod, run_pod, start};
use e2e::test_host::eventually;

e2e::cri_stories! {
    cve_2022_0811_the_value_of_a_sysctl_sets_nothing_else,
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn cve_2022_0811_the_value_of_a_sysctl_sets_nothing_else(server: CriServer) -> Result<()> {
    const TARGET: &str = "/proc/sys/kernel/core_pattern";
    let before = std::fs::read_to_string(TARGET)?;
    let evil = "kernel.core_pattern=|/proc/self/root/evil";
    let values = [format!("1+{evil}"), format!("1\n{evil}"), format!("1\0{evil}"), format!("1 {evil}")];
    let names = ["kernel.shm_rmid_forced", "net.ipv4.ip_default_ttl", "kernel.core_pattern"];
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        for (number, (name, value)) in
            names.iter().flat_map(|name| values.iter().map(move |value| (name, value))).enumerate()
        {
            let mut config = pod(server.host.path(), &format!("p{number}"));
            let linux = config.linux.get_or_insert_default();
            linux.sysctls.insert((*name).to_owned(), value.clone());
            let outcome = run_pod(&mut runtime, &config).await;
            // The reference writes what it is given, and the kernel takes the number at its beginning.
            if server.implementation == Implementation::Podwright {
                let error = format!("{:?}", outcome.expect_err("such a value is refused"));
                assert!(error.contains(name), "{error}");
            }
            assert_eq!(std::fs::read_to_string(TARGET)?, before, "{name}={value:?}");
        }
        Ok(())
    })
}

/// A pod that can write to its log directory puts a link to a file of the host where its log should be. The reference follows it.
#[test]
#[ignore = "needs root"]
fn khv047_a_log_that_is_a_link_is_not_followed() -> Result<()> {
    let server = CriServer::start(Implementation::Podwright)?;
    block_on(async {
        let (mut runtime, _) = server.clients().await?;
        let victim = server.host.path().join("victim");
        std::fs::write(&victim, "untouched")?;
        let config = pod(server.host.path(), "linked");
        let pod_id = run_pod(&mut runtime, &config).await?;
        let talk = container("talks", &["sh", "-c", "while :; do echo hello; sleep 0.1; done"]);
        let id = create(&mut runtime, &pod_id, &config, &talk).await?;
        start(&mut runtime, &id).await?;
        let log = Path::new(&config.log_directory).join(&talk.log_path);
        let size = || std::fs::metadata(log.with_extension("old")).map(|meta| meta.len()).unwrap_or_default();
        std::fs::rename(&log, log.with_extension("old"))?;
        std::os::unix::fs::symlink(&victim, &log)?;
        let request = ReopenContainerLogRequest { container_id: id.clone() };
        let error = runtime.reopen_container_log(request.clone()).await.expect_err("a link is refused");
        assert!(error.message().contains("log"), "{error}");
        let soon = size();
        eventually("what it says still goes to the former file", || (size() > soon).then_some(()))?;

        // Nor is it followed when a container starts, and the name of the file is the client's word only.
        let silent = container("talks", &["echo", "evil"]);
        let other = create(&mut runtime, &pod_id, &config, &silent).await;
        let started = match other {
            Ok(other) => start(&mut runtime, &other).await,
            Err(error) => Err(error),
        };
        started.expect_err("it has no log to write to");
        assert_eq!(std::fs::read_to_string(&victim)?, "untouched");

        std::fs::remove_file(&log)?;
        runtime.reopen_container_log(request).await.context("the link is gone")?;
        eventually("it writes its log again", || {
            std::fs::read_to_string(&log).ok()?.contains("hello").then_some(())
        })?;
        exec(&mut runtime, &id, &["true"]).await?;
        Ok(())
    })
}
