//! CNI 1.1 §4 "CHECK" of attachments: each plugin of the configuration with which it was added, with the result of ADD.

use std::path::Path;

use hostnet::netfilter::{Owner, WriteError};
use serde_json::Value;

use super::{Attachment, Client};
use crate::bridge::{ContainerEnd, open_namespace};
use crate::cache::Entry;
use crate::error::{CniError, Code};
use crate::exec;
use crate::result::AddResult;
use crate::steps::{Step, steps};

/// What is known of an attachment when no plugin complains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// Everything that was added is there.
    Intact,
    /// Nobody looked: this is why.
    Skipped(&'static str),
}

impl Client {
    /// Looks whether attachments still are as they were added; changes nothing of them. Rules of the bundled plugins that
    /// somebody else removed are back when this returns.
    pub async fn check(&self, attachments: &[Attachment]) -> Vec<Result<Checked, CniError>> {
        let rules = self.netfilter.inspect(Owner::Cni).await;
        let mut all = Vec::new();
        for attachment in attachments {
            all.push(self.check_one(attachment, &rules).await);
        }
        all
    }

    async fn check_one(
        &self,
        attachment: &Attachment,
        rules: &Result<(), WriteError>,
    ) -> Result<Checked, CniError> {
        let _shared = self.collecting.read().await;
        let entries = self.cache.of(&attachment.container_id, &attachment.ifname);
        if entries.is_empty() {
            let message = format!("sandbox {} is not connected", attachment.container_id);
            return Err(CniError::new(Code::InvalidEnvironment, message));
        }
        let mut outcome = Checked::Intact;
        for entry in &entries {
            if !entry.network.has_check() {
                outcome = Checked::Skipped("CNI 0.3.1 has no CHECK");
            } else if entry.network.disable_check {
                outcome = Checked::Skipped("the network's configuration has disableCheck");
            } else {
                self.check_entry(entry, attachment.netns.as_deref(), rules).await?;
            }
        }
        Ok(outcome)
    }

    /// The plugins in order, until one complains.
    async fn check_entry(
        &self,
        entry: &Entry,
        netns: Option<&Path>,
        rules: &Result<(), WriteError>,
    ) -> Result<(), CniError> {
        let netns = netns.ok_or_else(|| {
            CniError::new(Code::InvalidEnvironment, "the sandbox's network namespace is gone")
        })?;
        let result = entry.result.as_ref().ok_or_else(|| {
            CniError::new(Code::Internal, "the sandbox's connection did not come to its end")
        })?;
        let capabilities = serde_json::from_value(entry.capabilities.clone()).unwrap_or_default();
        let steps = steps(&entry.network, &self.config.bin_dirs, &capabilities)?;
        for step in &steps {
            self.check_step(step, entry, netns, result).await?;
        }
        if steps.iter().all(|step| matches!(step, Step::Foreign { .. })) {
            return Ok(());
        }
        rules.clone().map_err(|error| CniError::caused(Code::Internal, "put the pod's rules back", error))
    }

    async fn check_step(
        &self,
        step: &Step,
        entry: &Entry,
        netns: &Path,
        result: &Value,
    ) -> Result<(), CniError> {
        match step {
            Step::Bridge(bridge) => {
                let namespace = open_namespace(netns)?;
                let end = ContainerEnd {
                    container_id: &entry.container_id,
                    interface: &entry.ifname,
                    namespace: &namespace,
                    path: netns,
                };
                bridge.check(&self.netlink, &end, &AddResult::parse(result)?).await
            }
            Step::Portmap(_) | Step::Firewall(_) => Ok(()),
            Step::Foreign { program, config } => {
                let mut config = config.clone();
                config["prevResult"] = result.clone();
                let call = self.call("CHECK", entry, Some(netns));
                exec::run(program, &call, &config, self.config.patience).await.map(drop)
            }
        }
    }
}
