//! What an API server would refuse.
use crate::decode::Fault;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
pub(crate) fn pod(_: &Pod, _: &mut Vec<Fault>) {}
pub(crate) fn service(_: &Service, _: &mut Vec<Fault>) {}
pub(crate) fn config_map(_: &ConfigMap, _: &mut Vec<Fault>) {}
pub(crate) fn secret(_: &Secret, _: &mut Vec<Fault>) {}
