//! The commands that are clients of a daemon, and the few that need none.

mod completions;
mod create;
mod each;
mod events;
mod idle;
mod inspect;
mod list;
mod metrics;
mod new_box;
mod remove;
mod run;
mod seconds;
mod start;
mod stop;
mod top;

pub(crate) use completions::Completions;
pub(crate) use create::Create;
use each::each;
pub(crate) use events::Events;
pub(crate) use idle::idle;
pub(crate) use inspect::Inspect;
pub(crate) use list::List;
pub(crate) use metrics::Metrics;
use new_box::NewBox;
pub(crate) use remove::Remove;
pub(crate) use run::Run;
use seconds::seconds;
pub(crate) use start::Start;
pub(crate) use stop::Stop;
pub(crate) use top::Top;
