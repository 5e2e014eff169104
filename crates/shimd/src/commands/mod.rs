//! The commands that are clients of a daemon, and `completions` and `man`, which need none.

mod box_args;
mod completions;
mod create;
mod events;
mod exec;
mod filter;
mod for_each_box;
mod inspect;
mod list;
mod logs;
mod man;
mod metrics;
mod remove;
mod run;
mod seconds;
mod stage;
mod start;
mod stop;
mod top;
mod wait;

pub(crate) use completions::Completions;
pub(crate) use create::Create;
pub(crate) use events::Events;
pub(crate) use exec::{Attach, Exec};
pub(crate) use inspect::Inspect;
pub(crate) use list::List;
pub(crate) use logs::Logs;
pub(crate) use man::Man;
pub(crate) use metrics::Metrics;
pub(crate) use remove::Remove;
pub(crate) use run::Run;
pub(crate) use start::Start;
pub(crate) use stop::Stop;
pub(crate) use top::Top;
pub(crate) use wait::Wait;
