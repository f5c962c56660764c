//! What a KubeletConfiguration says of pods' limits, on a node of its own.

use anyhow::{Context, Result};
use e2e::story::container_id;
use e2e::{Story, TestHost};

/// A story on a node with these keys in its KubeletConfiguration.
fn story(keys: &str, files: &[(&str, &str)]) -> Result<Story> {
    let host = TestHost::new()?;
    let config = host.path().join("kubelet.yaml");
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    std::fs::write(&config, format!("{head}{keys}"))?;
    Story::start_on(host, files, &["--config", &config.display().to_string()])
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
    let counts = std::path::Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists();
    let wanted: &[&str] = if counts { &["67108864"] } else { &["0", "none"] };
    assert!(wanted.contains(&told.trim()), "{told}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_node_does_not_start_where_its_file_forbids() -> Result<()> {
    let is_v1 = !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let started = story("failCgroupV1: true\n", &[]);
    match started {
        Err(error) if is_v1 => {
            let told = format!("{error:#}");
            assert!(told.contains("failCgroupV1: true, and this machine has cgroup v1"), "{told}");
        }
        Err(error) => return Err(error),
        Ok(_) => assert!(!is_v1, "it has started"),
    }
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
    assert_eq!(told, "/huge hugetlbfs\n2777 7\n");
    e2e::test_host::eventually("the other says what is missing", || {
        let events = story.events("none").ok()?;
        let wanted = "medium HugePages-3Mi: no container asks for such huge pages";
        events.iter().any(|(_, message)| message.contains(wanted)).then_some(())
    })
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
