//! From actions to CRI calls.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::v1;
use host::error::chain;
use k8s_openapi::api::core::v1 as api;
use manifest::ObjectKey;

use super::{Wish, Worker};
use crate::cri_requests;
use crate::downward::PodFacts;
use crate::env_files;
use crate::environment;
use crate::events::Kind;
use crate::hosts;
use crate::pod::model::{Container, Pod, Role};
use crate::pod::plan::{ObservedPod, ObservedState, PodAction, PodPlan, is_running, newest};
use crate::pull_secrets::{self, Credential};
use crate::static_pod::is_static;
use crate::time::BootTime;
use crate::user_namespaces::PodIds;
use crate::volumes::{MountContext, wants_recursive_read_only};

/// How long what cannot be made now is not tried again.
const RETRY: Duration = Duration::from_secs(10);

/// How long a container waits for Services before it says so.
const SERVICES: Duration = Duration::from_secs(2);

/// Why a container does not start: what its status shows while it waits.
struct Obstacle {
    reason: &'static str,
    message: String,
}

impl Obstacle {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    fn is_of_image(&self) -> bool {
        matches!(self.reason, "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName" | "ImageInspectError")
    }
}

impl Worker {
    /// Carries out a plan in order. Hooks before the end and stops only begin; a pod that is not wanted any more interrupts
    /// starts.
    pub(super) async fn execute(&mut self, plan: PodPlan, seen: &ObservedPod) {
        for action in plan.actions {
            let mut wish = self.orders.wish.clone();
            wish.mark_unchanged();
            let is_start = matches!(
                action,
                PodAction::StartContainer { .. }
                    | PodAction::PostStart { .. }
                    | PodAction::CreateSandbox { .. }
            );
            let wanted = *wish.borrow() == Wish::Run;
            tokio::select! {
                () = self.execute_one(action, seen) => {}
                Ok(()) = wish.changed(), if is_start && wanted => return,
            }
        }
    }

    async fn execute_one(&mut self, action: PodAction, seen: &ObservedPod) {
        let mut runtime = self.runtime();
        let done = match action {
            PodAction::CreateSandbox { attempt } => return self.create_sandbox(attempt).await,
            PodAction::StartContainer { name, attempt } => {
                return self.start_container(&name, attempt, seen).await;
            }
            PodAction::PostStart { id, name } => {
                let Some(container) = self.container_of(&name) else { return };
                return self.post_start(&container, &id, seen).await;
            }
            PodAction::PreStop { id, name, kill } => {
                let Some(container) = self.container_of(&name) else { return };
                self.announce(&id, &name, kill);
                return self.pre_stop(&container, id, kill, seen);
            }
            PodAction::StopContainer { id, name, kill } => {
                self.announce(&id, &name, kill);
                return self.stop(id, kill);
            }
            PodAction::RemoveContainer { id, name, attempt } => {
                self.node.log_links().remove(self.owner(&name, &id));
                let removed = runtime.remove_container(v1::RemoveContainerRequest { container_id: id }).await;
                self.places(&name, attempt).remove();
                removed.map(drop)
            }
            PodAction::StopSandbox { id } => {
                runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id }).await.map(drop)
            }
            PodAction::RemoveSandbox { id } => {
                runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id }).await.map(drop)
            }
            PodAction::Finish => Ok(()),
        };
        if let Err(status) = done {
            tracing::warn!(pod = self.pod.name, error = status.message(), "the runtime refused");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn container_of(&self, name: &str) -> Option<Container> {
        self.pod.container(name).cloned()
    }

    /// The running container at whose processes an ephemeral one looks.
    fn target_of(&self, container: &Container, seen: &ObservedPod) -> Result<Option<String>, Obstacle> {
        let spec = self.pod.source.spec.as_ref();
        let mut all = spec.into_iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
        let own = all.find(|one| container.role == Role::Ephemeral && one.name == container.name);
        let named = own.and_then(|own| own.target_container_name.as_deref()).filter(|name| !name.is_empty());
        let Some(name) = named else { return Ok(None) };
        let running = newest(seen, name).filter(|one| is_running(one));
        let refused = || {
            Obstacle::new("CreateContainerConfigError", format!("unable to find target container {name:?}"))
        };
        Ok(Some(running.ok_or_else(refused)?.id.clone()))
    }

    async fn create_sandbox(&mut self, attempt: u32) {
        let timer = now();
        self.fetch_tokens().await;
        if let Err((reason, message)) = self.prepare() {
            self.node.reporter.event(&self.pod, Kind::Warning, reason, &message);
            self.memory.sandbox_held = Some(BootTime::now().after(Duration::from_secs(2)));
            return;
        }
        self.step("volumes", timer);
        let timer = now();
        if attempt > 0 {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.node.reporter.event(&self.pod, Kind::Normal, "SandboxChanged", message);
        }
        let dns = hosts::dns_of(&self.pod, &self.node.config);
        for message in &dns.omitted {
            self.node.reporter.event(&self.pod, Kind::Warning, "DNSConfigForming", message);
        }
        self.tell_missing_dns();
        let (config, runtime_handler) = match self.sandbox_request(attempt, dns.config).await {
            Ok(both) => both,
            Err(message) => {
                self.node.reporter.event(&self.pod, Kind::Warning, "FailedCreatePodSandBox", &message);
                self.memory.sandbox_held = Some(BootTime::now().after(RETRY));
                return;
            }
        };
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler };
        match self.runtime().run_pod_sandbox(request).await {
            Ok(_) => {
                self.memory.sandbox_held = None;
                self.step("sandbox", timer);
            }
            Err(status) => {
                let message = format!("Failed to create pod sandbox: {}", status.message());
                self.node.reporter.event(&self.pod, Kind::Warning, "FailedCreatePodSandBox", &message);
                self.memory.sandbox_held = Some(BootTime::now().after(RETRY));
            }
        }
    }

    /// A pod of a cluster that names the cluster's name server where there is none. On a node of its own that is as it should
    /// be.
    fn tell_missing_dns(&self) {
        let node = &self.node;
        if !node.inputs.is_cluster()
            || !node.config.cluster_dns.is_empty()
            || !hosts::wants_cluster_dns(&self.pod)
        {
            return;
        }
        let Pod { name, namespace, uid, .. } = &self.pod;
        node.reporter.node_event(Kind::Warning, "MissingClusterDNS", hosts::NO_CLUSTER_DNS);
        let message = format!("pod: \"{name}_{namespace}({uid})\". {}", hosts::NO_CLUSTER_DNS);
        node.reporter.event(&self.pod, Kind::Warning, "MissingClusterDNS", &message);
    }

    /// What must be there before the sandbox: cgroup, volumes, the directory of the logs.
    fn prepare(&self) -> Result<(), (&'static str, String)> {
        let cgroup = self.node.cgroups.create(&self.pod);
        cgroup.map_err(|error| {
            ("FailedCreatePodContainer", format!("unable to ensure pod container exists: {}", chain(&error)))
        })?;
        self.set_up_volumes().map_err(|message| ("FailedMount", message))?;
        let logs = self.log_directory();
        std::fs::create_dir_all(&logs)
            .map_err(|error| ("Failed", format!("create {}: {error}", logs.display())))
    }

    async fn start_container(&mut self, name: &str, attempt: u32, seen: &ObservedPod) {
        let Some(container) = self.container_of(name) else { return };
        let previous = seen.containers.get(name).and_then(|attempts| attempts.first());
        if let Some(previous) = previous {
            if self.memory.changed.contains(&previous.id) {
                self.memory.back_offs.remove(name);
            } else if let ObservedState::Exited { ended, .. } = &previous.state {
                let back_off = self.memory.back_offs.get(name).copied().unwrap_or_default();
                self.memory.back_offs.insert(name.to_owned(), back_off.next(*ended, BootTime::now()));
            }
        }
        match self.try_start(&container, attempt, seen).await {
            Ok(started) => {
                self.waiting.remove(name);
                self.memory.held.remove(name);
                self.image_back_offs.remove(name);
                if let Some(id) = started {
                    self.post_start(&container, &id, seen).await;
                }
            }
            Err(obstacle) => {
                // An image's trouble was told before: its reason is enough.
                let told = if obstacle.is_of_image() { obstacle.reason } else { &obstacle.message };
                let message = format!("Error: {told}");
                self.node.reporter.event(&self.pod, Kind::Warning, "Failed", &message);
                let until = if obstacle.reason == "ErrImagePull" {
                    let now = BootTime::now();
                    let next = self.image_back_offs.get(name).copied().unwrap_or_default().next(now, now);
                    self.image_back_offs.insert(name.to_owned(), next);
                    now.after(next.delay())
                } else {
                    BootTime::now().after(RETRY)
                };
                self.memory.held.insert(name.to_owned(), until);
                self.waiting.insert(name.to_owned(), (obstacle.reason.to_owned(), obstacle.message));
            }
        }
    }

    /// The id of the container that was started; nothing when it exited at once.
    async fn try_start(
        &mut self,
        container: &Container,
        attempt: u32,
        seen: &ObservedPod,
    ) -> Result<Option<String>, Obstacle> {
        let Some(sandbox) = seen.sandboxes.first().filter(|sandbox| sandbox.ready) else { return Ok(None) };
        let timer = now();
        let image = self.image(&container.spec).await?;
        self.step("image", timer);
        let timer = now();
        let refused = |message: String| Obstacle::new("CreateContainerConfigError", message);
        cri_requests::check_non_root(&self.pod, &container.spec, &image).map_err(refused)?;
        let desired = self.node.desired.borrow().clone();
        let facts = self.facts(&sandbox.ips);
        let services = self.services().await;
        let services = services.as_ref().map(|services| services.as_slice());
        let files = env_files::read_all(&self.node.volumes, &self.pod.uid, &container.spec);
        let env = environment::render(&self.pod, &container.spec, &desired.objects, services, &facts, &files)
            .map_err(refused)?;
        let images = self.volume_images(&container.spec).await?;
        let recursive_read_only = wants_recursive_read_only(&container.spec)
            && self.handler_can("", |features| features.recursive_read_only_mounts).await;
        self.recursive_read_only |= recursive_read_only;
        let context = MountContext { env: &env, images: &images, recursive_read_only };
        let mut mounts = self.node.volumes.mounts(&self.pod, &container.spec, context).map_err(refused)?;
        let places = self.places(&container.name, attempt);
        let message = places.make_message(&container.spec);
        let failed =
            |what: &str, error| Obstacle::new("CreateContainerError", format!("write the {what}: {error}"));
        mounts.extend(message.map_err(|error| failed("termination message's file", error))?);
        self.write_hosts(&sandbox.ips).map_err(|error| failed("pod's /etc/hosts", error))?;
        let ingredients = cri_requests::Ingredients {
            attempt,
            image: &image.id,
            env: &env,
            mounts,
            seccomp: cri_requests::Seccomp {
                profiles: &self.node.config.root_dir.join("seccomp"),
                runtime_default: self.node.config.seccomp_default,
            },
            target: self.target_of(container, seen)?,
            ids: self.ids().map_err(refused)?,
            resources: self.node.cgroups.container(&self.pod, &container.spec),
        };
        let config = cri_requests::container(&self.pod, container, ingredients).map_err(refused)?;
        let dns = hosts::dns_of(&self.pod, &self.node.config).config;
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.sandbox_config(sandbox.attempt, dns).map_err(refused)?),
        };
        let created = self.runtime().create_container(request).await;
        let id = created
            .map_err(|status| Obstacle::new("CreateContainerError", status.message()))?
            .into_inner()
            .container_id;
        self.step("create", timer);
        let reporter = &self.node.reporter;
        reporter.event(&self.pod, Kind::Normal, "Created", &format!("Container created: {}", container.name));
        let timer = now();
        if container.spec.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some()) {
            // Written down first: whoever finds the container running knows that its hook is not over.
            self.memory.post_start.insert(id.clone());
            self.remember();
        }
        let request = v1::StartContainerRequest { container_id: id.clone() };
        if let Err(status) = self.runtime().start_container(request).await {
            self.memory.post_start.remove(&id);
            // The container has exited with StartError: its own back-off counts from here on.
            let message = format!("Error: {}", status.message());
            self.node.reporter.event(&self.pod, Kind::Warning, "Failed", &message);
            return Ok(None);
        }
        self.step("start", timer);
        self.link_log(&container.name, attempt, &id);
        self.node.reporter.event(
            &self.pod,
            Kind::Normal,
            "Started",
            &format!("Container started: {}", container.name),
        );
        Ok(Some(id))
    }

    /// The Services that a container may learn of. Right after the agent's start they come a moment later than pods.
    async fn services(&self) -> Option<Arc<Vec<api::Service>>> {
        let mut services = self.node.inputs.services.clone();
        if !is_static(&self.pod) {
            let _ = tokio::time::timeout(SERVICES, services.wait_for(Option::is_some)).await;
        }
        services.borrow().clone()
    }

    /// What the pod's RuntimeClass names; the runtime's default without one.
    fn runtime_handler(&self) -> Result<String, String> {
        let spec = self.pod.source.spec.as_ref();
        let class = spec.and_then(|spec| spec.runtime_class_name.as_deref()).unwrap_or_default();
        if class.is_empty() {
            return Ok(String::new());
        }
        let classes = self.node.inputs.runtime_classes.borrow().clone();
        let handler = classes.as_ref().and_then(|classes| classes.get(class).cloned());
        handler.ok_or_else(|| {
            format!("Failed to create pod sandbox: failed to get sandbox runtime: RuntimeClass {class:?} not found")
        })
    }

    /// The sandbox, and the handler that makes it: one that can do what the pod needs.
    async fn sandbox_request(
        &self,
        attempt: u32,
        dns: v1::DnsConfig,
    ) -> Result<(v1::PodSandboxConfig, String), String> {
        let handler = self.runtime_handler()?;
        if has_own_users(&self.pod) && !self.handler_can(&handler, |features| features.user_namespaces).await
        {
            return Err(format!(
                "Failed to create pod sandbox: RuntimeClass handler {handler:?} does not support user namespaces"
            ));
        }
        Ok((self.sandbox_config(attempt, dns)?, handler))
    }

    /// The ids of a pod that has users of its own.
    fn ids(&self) -> Result<Option<PodIds>, String> {
        has_own_users(&self.pod).then(|| self.node.user_namespaces.of(&self.pod.uid)).transpose()
    }

    fn sandbox_config(&self, attempt: u32, dns: v1::DnsConfig) -> Result<v1::PodSandboxConfig, String> {
        let parent = self.node.cgroups.path(&self.pod);
        let logs = self.log_directory().display().to_string();
        let domain = &self.node.config.cluster_domain;
        cri_requests::sandbox(&self.pod, attempt, &logs, &parent, dns, domain, self.ids()?)
    }

    /// The images of the image volumes that the container mounts, pulled like its own.
    async fn volume_images(&self, spec: &api::Container) -> Result<BTreeMap<String, String>, Obstacle> {
        let mut images = BTreeMap::new();
        let volumes = self.pod.source.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        for volume in volumes {
            let Some(source) = &volume.image else { continue };
            if !spec.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name) {
                continue;
            }
            let wanted = api::Container {
                image: source.reference.clone(),
                image_pull_policy: source.pull_policy.clone(),
                ..Default::default()
            };
            images.insert(volume.name.clone(), self.image(&wanted).await?.id);
        }
        Ok(images)
    }

    /// Whether that handler of the runtime says that it can.
    async fn handler_can(&self, name: &str, can: impl Fn(&v1::RuntimeHandlerFeatures) -> bool) -> bool {
        let Ok(status) = self.runtime().status(v1::StatusRequest::default()).await else { return false };
        let mut handlers = status.into_inner().runtime_handlers.into_iter();
        let handler = handlers.find(|handler| handler.name == name);
        handler.and_then(|handler| handler.features).is_some_and(|features| can(&features))
    }

    /// The image by the pull policy.
    async fn image(&self, spec: &api::Container) -> Result<v1::Image, Obstacle> {
        let name = spec.image.clone().unwrap_or_default();
        let wanted = v1::ImageSpec { image: name.clone(), ..Default::default() };
        let present = self.image_status(&wanted).await?;
        let policy = spec.image_pull_policy.as_deref();
        let reporter = &self.node.reporter;
        match (policy, present) {
            (Some("Always"), _) | (_, None) if policy != Some("Never") => {}
            (Some("Never"), None) => {
                let message = format!("Container image {name:?} is not present with pull policy of Never");
                reporter.event(&self.pod, Kind::Warning, "ErrImageNeverPull", &message);
                return Err(Obstacle::new("ErrImageNeverPull", message));
            }
            (_, Some(image)) => {
                let message = format!("Container image {name:?} already present on machine");
                reporter.event(&self.pod, Kind::Normal, "Pulled", &message);
                return Ok(image);
            }
            (_, None) => {}
        }
        reporter.event(&self.pod, Kind::Normal, "Pulling", &format!("Pulling image {name:?}"));
        let timer = now();
        if let Err(status) = self.pull(&wanted).await {
            let message = format!("Failed to pull image {name:?}: {}", status.message());
            reporter.event(&self.pod, Kind::Warning, "Failed", &message);
            let reason = if status.code() == tonic::Code::InvalidArgument {
                "InvalidImageName"
            } else {
                "ErrImagePull"
            };
            return Err(Obstacle::new(reason, status.message()));
        }
        let message = format!("Successfully pulled image {name:?} in {:?}", timer.elapsed());
        reporter.event(&self.pod, Kind::Normal, "Pulled", &message);
        let image = self.image_status(&wanted).await?;
        image.ok_or_else(|| {
            Obstacle::new("ErrImagePull", format!("image {name:?} vanished after it was pulled"))
        })
    }

    /// Pulls with each of the credentials that are for the image, until one is taken; without any if there are none.
    async fn pull(&self, wanted: &v1::ImageSpec) -> Result<(), tonic::Status> {
        let of_pod = self.credentials(&wanted.image).into_iter().map(|one| {
            let Credential { username, password } = one;
            v1::AuthConfig { username, password, ..Default::default() }
        });
        let mut failures = Vec::new();
        for auth in self.node.config.node_logins.tries(of_pod.collect(), &wanted.image) {
            let request = v1::PullImageRequest { image: Some(wanted.clone()), auth, sandbox_config: None };
            match self.images().pull_image(request).await {
                Ok(_) => return Ok(()),
                Err(status) => failures.push(status),
            }
        }
        match failures.len() {
            1 => Err(failures.remove(0)),
            _ => {
                let messages: Vec<&str> = failures.iter().map(tonic::Status::message).collect();
                Err(tonic::Status::new(failures[0].code(), format!("[{}]", messages.join(", "))))
            }
        }
    }

    /// Those of the pod's imagePullSecrets. Secrets that are not there are told of.
    fn credentials(&self, image: &str) -> Vec<Credential> {
        let names = self.pod.source.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        let names: Vec<&str> = names.map(|one| one.name.as_str()).filter(|name| !name.is_empty()).collect();
        let desired = self.node.desired.borrow().clone();
        let find = |name: &&str| desired.objects.secrets.get(&ObjectKey::new(&self.pod.namespace, *name));
        let missing: Vec<&str> = names.iter().filter(|name| find(name).is_none()).copied().collect();
        if !missing.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            let reporter = &self.node.reporter;
            reporter.event(&self.pod, Kind::Warning, "FailedToRetrieveImagePullSecret", &message);
        }
        let secrets: Vec<&api::Secret> = names.iter().filter_map(find).map(AsRef::as_ref).collect();
        pull_secrets::credentials(&secrets, image)
    }

    async fn image_status(&self, wanted: &v1::ImageSpec) -> Result<Option<v1::Image>, Obstacle> {
        let request = v1::ImageStatusRequest { image: Some(wanted.clone()), verbose: false };
        let answer = self.images().image_status(request).await;
        answer
            .map(|answer| answer.into_inner().image)
            .map_err(|status| Obstacle::new("ImageInspectError", status.message()))
    }

    /// What the pod may tell its containers of itself and the node.
    pub(super) fn facts(&self, pod_ips: &[String]) -> PodFacts {
        PodFacts {
            node_name: self.node.config.node_name.clone(),
            host_ips: self.node_ips(),
            pod_ips: pod_ips.to_vec(),
            capacity: self.node.capacity,
        }
    }

    fn write_hosts(&self, ips: &[String]) -> std::io::Result<()> {
        let of_node = cri_requests::on_host_network(&self.pod)
            .then(|| std::fs::read_to_string("/etc/hosts").unwrap_or_default());
        let text = hosts::render_hosts(&self.pod, &self.node.config.cluster_domain, ips, of_node.as_deref());
        self.node.volumes.write_hosts(&self.pod.uid, &text)
    }

    /// Notes how long a step of the first start took.
    fn step(&mut self, name: &str, timer: Instant) {
        if self.times.total > 0.0 {
            return;
        }
        let ms = timer.elapsed().as_secs_f64() * 1e3;
        match self.times.steps.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum += ms,
            None => self.times.steps.push((name.to_owned(), ms)),
        }
    }
}

/// `hostUsers: false`.
fn has_own_users(pod: &Pod) -> bool {
    pod.source.spec.as_ref().and_then(|spec| spec.host_users) == Some(false)
}

#[expect(clippy::disallowed_methods, reason = "how long a step takes is measured")]
fn now() -> Instant {
    Instant::now()
}
