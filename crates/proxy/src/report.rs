//! What the proxy tells others: Services with their addresses, endpoints, and what it does not do.

use std::fmt;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use manifest::ObjectKey;

/// Something a Service asks for and does not get.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The Service; none when it is about all of them.
    pub service: Option<ObjectKey>,
    /// `spec.ports[0].nodePort`, when it is about one field.
    pub field: Option<String>,
    /// What is the matter, for a person who can change it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(service) = &self.service {
            write!(f, "Service {service}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "field {field}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// What is served now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProxyReport {
    /// Every Service, with the addresses and ports that it was given.
    pub services: Vec<Service>,
    /// One slice for each Service with a selector.
    pub endpoints: Vec<EndpointSlice>,
    /// What is refused or ignored, by name.
    pub problems: Vec<Problem>,
}
