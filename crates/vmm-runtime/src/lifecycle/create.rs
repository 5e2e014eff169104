use std::sync::Arc;

use jiff::Timestamp;
use vmm_protocol::FILES;

use crate::boxes::{BoxRecord, MicroBox};
use crate::core::Core;
use crate::{BoxInfo, BoxSpec, RuntimeError};

/// A box exists once it is whole on disk.
pub(crate) async fn create(core: Arc<Core>, spec: BoxSpec) -> Result<BoxInfo, RuntimeError> {
    spec.check()?;
    let id = core.new_id();
    let name = spec.name.clone();
    if let Some(name) = &name {
        core.boxes.reserve(name, &id)?;
    }
    let record = BoxRecord::new(id.clone(), Timestamp::now(), spec);
    let written = core
        .on_disk({
            let home = core.home.clone();
            let record = record.clone();
            move || home.create_box(&record.id, |dir| record.write(&dir.join(FILES.spec)))
        })
        .await;
    if let Err(error) = written {
        if let Some(name) = &name {
            core.boxes.release(name);
        }
        return Err(error);
    }
    let dir = core.home.box_dir(&id);
    let made = Arc::new(MicroBox::new(record, None, dir, Arc::clone(&core.herald)));
    core.boxes.insert(Arc::clone(&made), MicroBox::tell_created);
    Ok(made.info())
}
