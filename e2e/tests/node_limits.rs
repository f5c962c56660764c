//! What a KubeletConfiguration says of pods' limits, on a node of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use e2e::story::container_id;
use e2e::{Story, TestHost};

const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

/// A story on a node with these keys in its KubeletConfiguration.
fn story(keys: &str, files: &[(&str, &str)]) -> Result<Story> {
    let host = TestHost::new()?;
    let config = host.path().join("kubelet.yaml");
    std::fs::write(&config, format!("{HEAD}{keys}"))?;
    Story::start_on(host, files, &["--config", &config.display().to_string()])
}

/// What a node says that ends by itself because of these keys.
fn refusal(keys: &str) -> Result<String> {
    let host = TestHost::new()?;
    let config = host.path().join("kubelet.yaml");
    std::fs::write(&config, format!("{HEAD}{keys}"))?;
    let mut command = host.command("timeout");
    command.arg("60").arg(e2e::parts::podwright()).arg("run");
    for (flag, name) in [("-f", "manifests"), ("--root", "root"), ("--state", "state")] {
        let directory = host.path().join(name);
        std::fs::create_dir(&directory)?;
        command.arg(flag).arg(directory);
    }
    let cgroup = format!("/podwright-e2e-refused-{}", std::process::id());
    let output = command.arg("--config").arg(&config).args(["--cgroup-root", &cgroup]).output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.code() != Some(124) && !output.status.success(), "it runs: {told}");
    Ok(told)
}

const TWO: &str = "apiVersion: v1
kind: Pod
metadata:
  name: two
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: a
    image: IMAGE
    command: [/bin/sh, -c, 'for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done; wait']
  - name: b
    image: IMAGE
    command: [/bin/sleep, '1000']
";

#[test]
#[ignore = "needs root"]
fn a_pod_has_no_more_tasks_than_the_node_lets_each_have() -> Result<()> {
    let story = story("podPidsLimit: 20\n", &[("pod.yaml", TWO)])?;
    let pod = story.ready("two")?;
    let statuses = pod["status"]["containerStatuses"].as_array().context("statuses")?;
    for status in statuses {
        let id = status["containerID"].as_str().context("an id")?.trim_start_matches("podwright://");
        // Thirteen are in the one container, one in the other.
        let fork = "(for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait; echo all) 2>&1; true";
        let said = story.exec(id, fork)?;
        assert!(said.contains("can't fork") && !said.contains("all"), "{}: {said}", status["name"]);
    }
    let few = story.exec(&container_id(&pod)?, "sleep 0 & wait; echo all")?;
    assert_eq!(few.trim(), "all");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_container_does_not_swap_where_the_kernel_can_tell() -> Result<()> {
    let pod = TWO.replace("name: two", "name: calm").replace(
        "    command: [/bin/sleep, '1000']",
        "    command: [/bin/sleep, '1000']\n    resources: {limits: {memory: 64Mi}}",
    );
    let story = story("failSwapOn: false\n", &[("pod.yaml", &pod)])?;
    let pod = story.ready("calm")?;
    let statuses = pod["status"]["containerStatuses"].as_array().context("statuses")?;
    let limited = statuses.iter().find(|status| status["name"] == "b").context("the container")?;
    let id = limited["containerID"].as_str().context("an id")?.trim_start_matches("podwright://");
    let files = "cd /sys/fs/cgroup; cat memory/memory.memsw.limit_in_bytes 2>/dev/null || cat memory.swap.max 2>/dev/null || echo none";
    let told = story.exec(id, files)?;
    let counts = Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists();
    let wanted: &[&str] = if counts { &["67108864"] } else { &["0", "none"] };
    assert!(wanted.contains(&told.trim()), "{told}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_node_does_not_start_where_its_file_forbids() -> Result<()> {
    anyhow::ensure!(!Path::new("/sys/fs/cgroup/cgroup.controllers").exists(), "this machine has cgroup v2");
    let told = refusal("failCgroupV1: true\n")?;
    assert!(told.contains("failCgroupV1: true, and this machine has cgroup v1"), "{told}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn containers_without_a_seccomp_profile_have_the_runtime_s_where_the_node_says_so() -> Result<()> {
    let free = TWO
        .replace("name: two", "name: free")
        .replace("  - name: b\n", "  - name: b\n    securityContext: {seccompProfile: {type: Unconfined}}\n");
    let story = story("seccompDefault: true\n", &[("pod.yaml", &free)])?;
    let pod = story.ready("free")?;
    for status in pod["status"]["containerStatuses"].as_array().context("statuses")? {
        let id = status["containerID"].as_str().context("an id")?.trim_start_matches("podwright://");
        let mode = story.exec(id, "grep Seccomp: /proc/1/status | tr -d '[:space:]'")?;
        let expect = if status["name"] == "a" { "Seccomp:2" } else { "Seccomp:0" };
        assert_eq!(mode.trim(), expect, "{}", status["name"]);
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn an_empty_dir_of_huge_pages_has_them_or_says_why_not() -> Result<()> {
    let sizes = std::fs::read_dir("/sys/kernel/mm/hugepages")?.count();
    anyhow::ensure!(sizes > 0, "this kernel has no huge pages");
    let pod = |name: &str, medium: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {{fsGroup: 7}}
  volumes: [{{name: huge, emptyDir: {{medium: {medium}}}}}]
  containers:
  - name: a
    image: IMAGE
    command: [/bin/sleep, '1000']
    resources: {{limits: {{hugepages-2Mi: 4Mi, memory: 64Mi, cpu: 1}}}}
    volumeMounts: [{{name: huge, mountPath: /huge}}]
"
        )
    };
    let files = [("good.yaml", pod("good", "HugePages")), ("none.yaml", pod("none", "HugePages-3Mi"))];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let story = Story::start(&files)?;
    let id = container_id(&story.ready("good")?)?;
    let told = story.exec(&id, "grep ' /huge ' /proc/mounts | cut -d' ' -f2,3; stat -c '%a %g' /huge")?;
    assert_eq!(told.trim_end(), "/huge hugetlbfs\n2777 7");
    e2e::test_host::eventually("the other says what is missing", || {
        let events = story.events("none").ok()?;
        let wanted = "medium HugePages-3Mi: no container asks for such huge pages";
        events.iter().any(|(_, message)| message.contains(wanted)).then_some(())
    })
}

#[test]
#[ignore = "needs root"]
fn a_cgroup_of_the_machine_is_held_to_what_is_reserved_for_it() -> Result<()> {
    let name = format!("podwright-e2e-reserved-{}", std::process::id());
    let keys = format!(
        "systemReserved: {{cpu: 500m, memory: 100Mi, pid: \"50\"}}\nsystemReservedCgroup: /{name}\n\
         enforceNodeAllocatable: [pods, system-reserved]\n"
    );
    let told = refusal(&keys)?;
    assert!(
        told.contains(&format!("hold the cgroup /{name} to systemReserved: there is no cgroup")),
        "{told}"
    );
    let root = Path::new("/sys/fs/cgroup");
    let is_v2 = root.join("cgroup.controllers").exists();
    let (hierarchies, limit) = if is_v2 {
        (&[""][..], "memory.max")
    } else {
        (&["cpu", "memory", "pids"][..], "memory.limit_in_bytes")
    };
    let directories: Vec<PathBuf> = hierarchies.iter().map(|one| root.join(one).join(&name)).collect();
    directories.iter().try_for_each(std::fs::create_dir).context("make the cgroup")?;
    let held = story(&keys, &[]).and_then(|_story| {
        let find = |file: &str| -> Result<String> {
            let mut files = directories.iter().map(|directory| directory.join(file));
            let file = files.find(|file| file.exists()).with_context(|| file.to_owned())?;
            Ok(std::fs::read_to_string(file)?.trim().to_owned())
        };
        Ok((find("pids.max")?, find(limit)?))
    });
    directories.iter().try_for_each(std::fs::remove_dir).context("remove the cgroup")?;
    assert_eq!(held?, ("50".to_owned(), "104857600".to_owned()));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn all_pods_together_leave_the_tasks_that_are_reserved() -> Result<()> {
    let most: u64 = ["pid_max", "threads-max"]
        .iter()
        .filter_map(|name| {
            std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse().ok()
        })
        .min()
        .context("how many tasks there may be")?;
    let reserved = most - 10;
    let story = story(&format!("systemReserved: {{pid: \"{reserved}\"}}\n"), &[("pod.yaml", TWO)])?;
    let pod = story.pod_until("two", "its container cannot fork", |pod| {
        let states = &pod["status"]["containerStatuses"];
        states.as_array().is_some_and(|all| all.iter().any(|one| one["restartCount"].as_u64() > Some(0)))
    })?;
    assert_eq!(pod["status"]["phase"], "Running");
    Ok(())
}
