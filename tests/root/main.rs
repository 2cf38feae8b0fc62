//! The product as its users meet it. Needs root; names no registry and no network but loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod agents;
mod bad_input;
mod build;
mod bundles;
mod caches;
mod check;
mod confinement;
mod copies;
mod corpus;
mod crash;
mod diagnose;
mod faults;
mod files;
mod firewalls;
mod full_disk;
mod git;
mod health;
mod hostile;
mod idmaps;
mod images;
mod layers;
mod leftovers;
mod lifecycle;
mod limits;
mod logs;
mod metrics;
mod names;
mod network;
mod outputs;
mod process;
mod pull;
mod push;
mod quotas;
mod restart;
mod rootless;
mod run;
mod saves;
mod serve;
mod sites;
mod streams;
mod terminal;
mod upgrade;
mod volumes;
