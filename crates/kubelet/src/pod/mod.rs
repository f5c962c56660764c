//! One pod: the admitted model, what a round decides, how it is carried out, what is told of it.

pub mod back_off;
pub mod container_details;
pub mod model;
pub(crate) mod own_resources;
pub mod plan;
mod readiness_gates;
mod refuse;
pub mod status;
pub(crate) mod termination;
pub(crate) mod worker;
