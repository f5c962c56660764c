//! What manifests give: typed objects by kind and name, and what is wrong with the documents that gave none.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};

/// What tells two objects of one kind apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    /// `default` when the manifest names none.
    pub namespace: String,
    /// As in `metadata.name`.
    pub name: String,
}

impl ObjectKey {
    /// The key of `namespace/name`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Every object, defaulted and validated as an API server does it. Pods have a UID (a hash of what they are, so another
/// UID is another pod) and a creation time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// Pods.
    pub pods: BTreeMap<ObjectKey, Arc<Pod>>,
    /// Services.
    pub services: BTreeMap<ObjectKey, Arc<Service>>,
    /// ConfigMaps.
    pub config_maps: BTreeMap<ObjectKey, Arc<ConfigMap>>,
    /// Secrets; `stringData` is merged into `data`.
    pub secrets: BTreeMap<ObjectKey, Arc<Secret>>,
}

/// One thing that is wrong with one document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, or the directory that cannot be read.
    pub file: PathBuf,
    /// Which document of the file, from 1; 0 when it is the file as a whole.
    pub document: usize,
    /// `spec.containers[0].image`, when it is about one field.
    pub field: Option<String>,
    /// What is wrong, for a person who can change it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.document > 0 {
            write!(f, " document {}", self.document)?;
        }
        match &self.field {
            Some(field) => write!(f, ": field {field}: {}", self.message),
            None => write!(f, ": {}", self.message),
        }
    }
}

/// The outcome of reading every path.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// The objects of good documents, and the last good version of those whose document broke.
    pub objects: Objects,
    /// What is wrong, ordered by file and document.
    pub problems: Vec<Problem>,
    /// Whether something that may be a pod could not be read since this process began: a pod that is missing here may be wanted.
    pub incomplete: bool,
    /// Uids of pods that run already while it is not known yet whether what they refer to is there. Files leave no such doubt.
    pub pending: BTreeSet<String>,
    /// Uids of pods that are wanted and not among the objects yet, until it is known whether what they refer to is there.
    pub awaited: BTreeSet<String>,
}
