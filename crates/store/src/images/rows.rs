//! The tables of images.
//!
//! ```text
//! layers        chain_id → diff_id, size: the folder layers/<chain> is complete
//! images        id → manifest, size of all layers; `unsynced` holds the host's boot id from the
//!               load until the files of the image were flushed to the disk
//! image_layers  (image, position) → chain_id, lowest first; kept while the image exists or is used
//! image_names   complete name → image; `document` is what the name stands for in registries: an index, or one
//!               of the manifests that the image has been known by
//! index_parts   (document, part): an index, and one that it lists; for as long as a name stands for the outermost
//! artifact_blobs  (artifact, digest): an artifact is an image whose id is its manifest's digest; its blobs are in
//!               content/blobs as they came
//! layer_places  diff_id → a blob of a registry's repository that holds the layer: what need not be
//!               uploaded there again, and can be mounted from there
//! layer_blobs   digest → diff_id: content/blobs has the layer's archive in the compressed form that
//!               it came in
//! image_uses    owner (a container) → image; outlives the image if its removal was forced
//! ```

use std::collections::HashSet;

use insula_base::{ChainId, DiffId, Digest};
use insula_spec::reference::Reference;
use rusqlite::Row;
use rusqlite::types::Type;

use crate::Result;
use crate::state::Sql;

/// A layer as the state has it.
#[derive(Debug, Clone)]
pub(super) struct LayerRow {
    pub(super) chain: ChainId,
    pub(super) diff: DiffId,
    pub(super) size: u64,
}

/// An image as the state has it.
#[derive(Debug, Clone)]
pub(super) struct ImageRow {
    pub(super) id: Digest,
    pub(super) manifest: Option<Digest>,
    pub(super) size: u64,
}

/// Where a registry has a layer.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) diff: DiffId,
    pub(super) registry: String,
    pub(super) repository: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) media_type: String,
}

/// A layer's archive as it came, compressed.
#[derive(Debug, Clone)]
pub(super) struct BlobRow {
    pub(super) digest: Digest,
    pub(super) diff: DiffId,
    pub(super) size: u64,
    pub(super) media_type: String,
}

/// Repositories that are remembered of one layer.
const PLACES_MAX: usize = 32;

fn parsed<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    text.parse()
        .map_err(|e: T::Err| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

fn size(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.unsigned_abs())
}

fn layer_row(row: &Row<'_>) -> rusqlite::Result<LayerRow> {
    Ok(LayerRow { chain: ChainId(parsed(row, 0)?), diff: DiffId(parsed(row, 1)?), size: size(row, 2)? })
}

fn image_row(row: &Row<'_>) -> rusqlite::Result<ImageRow> {
    let manifest: Option<String> = row.get(1)?;
    let manifest = manifest.map(|_| parsed(row, 1)).transpose()?;
    Ok(ImageRow { id: parsed(row, 0)?, manifest, size: size(row, 2)? })
}

/// SQLite's integers are signed; no layer comes near.
fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

pub(super) fn layer(sql: Sql<'_>, chain: &ChainId) -> Result<Option<LayerRow>> {
    let text = "SELECT chain_id, diff_id, size FROM layers WHERE chain_id = ?1";
    sql.row("read a layer", text, (chain.0.as_str(),), layer_row)
}

/// Any layer with this content, wherever in a stack.
pub(super) fn layer_with(sql: Sql<'_>, diff: &DiffId) -> Result<Option<LayerRow>> {
    let text = "SELECT chain_id, diff_id, size FROM layers WHERE diff_id = ?1 LIMIT 1";
    sql.row("read a layer", text, (diff.0.as_str(),), layer_row)
}

pub(super) fn all_layers(sql: Sql<'_>) -> Result<Vec<ChainId>> {
    sql.rows("read layers", "SELECT chain_id FROM layers", (), |row| Ok(ChainId(parsed(row, 0)?)))
}

/// The layers below one, lowest first: those of any image that has it.
pub(super) fn stack_below(sql: Sql<'_>, chain: &ChainId) -> Result<Vec<ChainId>> {
    let text = "SELECT lower.chain_id FROM image_layers lower JOIN
                (SELECT image, position FROM image_layers WHERE chain_id = ?1 LIMIT 1) upper USING (image)
                WHERE lower.position < upper.position ORDER BY lower.position";
    sql.rows("read the layers below one", text, (chain.0.as_str(),), |row| Ok(ChainId(parsed(row, 0)?)))
}

pub(super) fn add_layer(sql: Sql<'_>, layer: &LayerRow) -> Result<()> {
    let text = "INSERT OR IGNORE INTO layers (chain_id, diff_id, size) VALUES (?1, ?2, ?3)";
    let params = (layer.chain.0.as_str(), layer.diff.0.as_str(), signed(layer.size));
    sql.execute("add a layer", text, params).map(drop)
}

pub(super) fn remove_layer(sql: Sql<'_>, chain: &ChainId) -> Result<()> {
    sql.execute("remove a layer", "DELETE FROM layers WHERE chain_id = ?1", (chain.0.as_str(),)).map(drop)
}

pub(super) fn places(sql: Sql<'_>, diff: &DiffId) -> Result<Vec<Place>> {
    let text = "SELECT diff_id, registry, repository, digest, size, media_type FROM layer_places
                WHERE diff_id = ?1";
    sql.rows("read the places of a layer", text, (diff.0.as_str(),), |row| {
        Ok(Place {
            diff: DiffId(parsed(row, 0)?),
            registry: row.get(1)?,
            repository: row.get(2)?,
            digest: parsed(row, 3)?,
            size: size(row, 4)?,
            media_type: row.get(5)?,
        })
    })
}

pub(super) fn add_place(sql: Sql<'_>, place: &Place) -> Result<()> {
    if places(sql, &place.diff)?.len() >= PLACES_MAX {
        return Ok(());
    }
    let text = "INSERT OR IGNORE INTO layer_places (diff_id, registry, repository, digest, size, media_type)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let params = (
        place.diff.0.as_str(),
        place.registry.as_str(),
        place.repository.as_str(),
        place.digest.as_str(),
        signed(place.size),
        place.media_type.as_str(),
    );
    sql.execute("note the place of a layer", text, params).map(drop)
}

/// Forgets where layers are that are not here.
pub(super) fn drop_places(sql: Sql<'_>) -> Result<()> {
    let text = "DELETE FROM layer_places WHERE diff_id NOT IN (SELECT diff_id FROM layers)";
    sql.execute("forget the places of layers", text, ()).map(drop)
}

fn blob_row(row: &Row<'_>) -> rusqlite::Result<BlobRow> {
    Ok(BlobRow {
        digest: parsed(row, 0)?,
        diff: DiffId(parsed(row, 1)?),
        size: size(row, 2)?,
        media_type: row.get(3)?,
    })
}

/// The compressed archive of a layer with this digest.
pub(super) fn blob(sql: Sql<'_>, digest: &Digest) -> Result<Option<BlobRow>> {
    let text = "SELECT digest, diff_id, size, media_type FROM layer_blobs WHERE digest = ?1";
    sql.row("read a layer's blob", text, (digest.as_str(),), blob_row)
}

/// Every compressed archive that is kept.
pub(super) fn blobs(sql: Sql<'_>) -> Result<Vec<BlobRow>> {
    let text = "SELECT digest, diff_id, size, media_type FROM layer_blobs";
    sql.rows("read the blobs of layers", text, (), blob_row)
}

pub(super) fn add_blob(sql: Sql<'_>, blob: &BlobRow) -> Result<()> {
    let text =
        "INSERT OR IGNORE INTO layer_blobs (digest, diff_id, size, media_type) VALUES (?1, ?2, ?3, ?4)";
    let params = (blob.digest.as_str(), blob.diff.0.as_str(), signed(blob.size), blob.media_type.as_str());
    sql.execute("note a layer's blob", text, params).map(drop)
}

pub(super) fn remove_blob(sql: Sql<'_>, digest: &Digest) -> Result<()> {
    let text = "DELETE FROM layer_blobs WHERE digest = ?1";
    sql.execute("forget a layer's blob", text, (digest.as_str(),)).map(drop)
}

/// Forgets the blobs of layers that are not here, and returns them.
pub(super) fn drop_blobs(sql: Sql<'_>) -> Result<Vec<Digest>> {
    let text = "DELETE FROM layer_blobs WHERE diff_id NOT IN (SELECT diff_id FROM layers) RETURNING digest";
    sql.rows("forget the blobs of layers", text, (), |row| parsed(row, 0))
}

/// The contents of all layers.
pub(super) fn all_diffs(sql: Sql<'_>) -> Result<HashSet<DiffId>> {
    let text = "SELECT DISTINCT diff_id FROM layers";
    let diffs = sql.rows("read layers", text, (), |row| Ok(DiffId(parsed(row, 0)?)))?;
    Ok(diffs.into_iter().collect())
}

pub(super) fn image(sql: Sql<'_>, id: &Digest) -> Result<Option<ImageRow>> {
    let text = "SELECT id, manifest, size FROM images WHERE id = ?1";
    sql.row("read an image", text, (id.as_str(),), image_row)
}

pub(super) fn images(sql: Sql<'_>) -> Result<Vec<ImageRow>> {
    sql.rows("read images", "SELECT id, manifest, size FROM images", (), image_row)
}

/// The manifests of all images, and all that names stand for, with the indexes within indexes.
pub(super) fn documents(sql: Sql<'_>) -> Result<HashSet<Digest>> {
    let text = "WITH RECURSIVE kept (document) AS (
                    SELECT document FROM image_names WHERE document IS NOT NULL
                    UNION SELECT part FROM kept JOIN index_parts USING (document))
                SELECT document FROM kept UNION SELECT manifest FROM images WHERE manifest IS NOT NULL";
    Ok(sql.rows("read manifests", text, (), |row| parsed(row, 0))?.into_iter().collect())
}

/// Notes which indexes list which others.
pub(super) fn add_index_parts(sql: Sql<'_>, pairs: &[(Digest, Digest)]) -> Result<()> {
    let text = "INSERT OR IGNORE INTO index_parts (document, part) VALUES (?1, ?2)";
    pairs.iter().try_for_each(|(document, part)| {
        sql.execute("note a part of an index", text, (document.as_str(), part.as_str())).map(drop)
    })
}

/// Forgets the parts of indexes that nothing stands for any more.
pub(super) fn drop_index_parts(sql: Sql<'_>) -> Result<()> {
    let text = "DELETE FROM index_parts WHERE document NOT IN (
                    WITH RECURSIVE kept (document) AS (
                        SELECT document FROM image_names WHERE document IS NOT NULL
                        UNION SELECT part FROM kept JOIN index_parts USING (document))
                    SELECT document FROM kept)";
    sql.execute("forget the parts of indexes", text, ()).map(drop)
}

/// What names with a tag stand for, other than this one.
pub(super) fn tagged_documents(sql: Sql<'_>, without: Option<&Reference>) -> Result<Vec<Digest>> {
    let text = "SELECT DISTINCT document FROM image_names
                WHERE document IS NOT NULL AND instr(name, '@') = 0 AND name != ?1";
    let without = without.map(Reference::to_string).unwrap_or_default();
    sql.rows("read what names stand for", text, (without,), |row| parsed(row, 0))
}

/// What names with a tag stand for that are of other images.
pub(super) fn documents_of_others(sql: Sql<'_>, image: &Digest) -> Result<Vec<Digest>> {
    let text = "SELECT DISTINCT document FROM image_names
                WHERE document IS NOT NULL AND instr(name, '@') = 0 AND image != ?1";
    sql.rows("read what names stand for", text, (image.as_str(),), |row| parsed(row, 0))
}

/// Everything that has to be below content/blobs.
pub(super) fn contents(sql: Sql<'_>) -> Result<HashSet<Digest>> {
    let text =
        "SELECT id FROM images UNION SELECT digest FROM layer_blobs UNION SELECT digest FROM artifact_blobs";
    let mut all = documents(sql)?;
    all.extend(sql.rows::<Digest>("read blobs", text, (), |row| parsed(row, 0))?);
    Ok(all)
}

/// The image that has this manifest.
pub(super) fn with_manifest(sql: Sql<'_>, manifest: &Digest) -> Result<Option<Digest>> {
    let text = "SELECT id FROM images WHERE manifest = ?1
                UNION SELECT image FROM image_names WHERE document = ?1 LIMIT 1";
    sql.row("find an image by its manifest", text, (manifest.as_str(),), |row| parsed(row, 0))
}

pub(super) fn add_artifact_blob(sql: Sql<'_>, artifact: &Digest, digest: &Digest) -> Result<()> {
    let text = "INSERT OR IGNORE INTO artifact_blobs (artifact, digest) VALUES (?1, ?2)";
    sql.execute("note a blob of an artifact", text, (artifact.as_str(), digest.as_str())).map(drop)
}

/// The blobs of all artifacts.
pub(super) fn artifact_blobs(sql: Sql<'_>) -> Result<HashSet<Digest>> {
    let text = "SELECT DISTINCT digest FROM artifact_blobs";
    Ok(sql.rows("read the blobs of artifacts", text, (), |row| parsed(row, 0))?.into_iter().collect())
}

pub(super) fn has_artifact_blob(sql: Sql<'_>, artifact: &Digest, digest: &Digest) -> Result<bool> {
    let text = "SELECT 1 FROM artifact_blobs WHERE artifact = ?1 AND digest = ?2";
    let found =
        sql.row("read a blob of an artifact", text, (artifact.as_str(), digest.as_str()), |_| Ok(()))?;
    Ok(found.is_some())
}

/// The blobs of one artifact; an image has none.
pub(super) fn blobs_of_artifact(sql: Sql<'_>, artifact: &Digest) -> Result<Vec<Digest>> {
    let text = "SELECT digest FROM artifact_blobs WHERE artifact = ?1";
    sql.rows("read the blobs of an artifact", text, (artifact.as_str(),), |row| parsed(row, 0))
}

/// Forgets the blobs of artifacts that are not here, and returns them. Leased ones are left to the next who does.
pub(super) fn drop_artifact_blobs(sql: Sql<'_>, leased: &dyn Fn(&Digest) -> bool) -> Result<Vec<Digest>> {
    let text = "SELECT DISTINCT digest FROM artifact_blobs WHERE artifact NOT IN (SELECT id FROM images)";
    let mut dropped: Vec<Digest> =
        sql.rows("find the blobs of artifacts that are gone", text, (), |row| parsed(row, 0))?;
    dropped.retain(|digest| !leased(digest));
    for digest in &dropped {
        let text = "DELETE FROM artifact_blobs WHERE digest = ?1 AND artifact NOT IN (SELECT id FROM images)";
        sql.execute("forget a blob of artifacts", text, (digest.as_str(),))?;
    }
    Ok(dropped)
}

/// What a name stands for in registries.
pub(super) fn document_of(sql: Sql<'_>, name: &Reference) -> Result<Option<Digest>> {
    let text = "SELECT document FROM image_names WHERE name = ?1 AND document IS NOT NULL";
    sql.row("read a name", text, (name.to_string(),), |row| parsed(row, 0))
}

/// At most two images whose ids begin with these hexadecimal digits.
pub(super) fn images_beginning(sql: Sql<'_>, digits: &str) -> Result<Vec<ImageRow>> {
    // `g` is past every digit.
    let text = "SELECT id, manifest, size FROM images WHERE id >= ?1 AND id < ?2 LIMIT 2";
    sql.rows("find an image", text, (format!("sha256:{digits}"), format!("sha256:{digits}g")), image_row)
}

pub(super) fn add_image(sql: Sql<'_>, row: &ImageRow, chains: &[ChainId], boot: &str) -> Result<()> {
    // An image that is here already stays as it is, but for another manifest; that is not on the disk yet.
    let text = "INSERT INTO images (id, manifest, size, unsynced) VALUES (?1, ?2, ?3, ?4)
                ON CONFLICT (id) DO UPDATE SET manifest = ?2, unsynced = ?4
                WHERE ?2 IS NOT NULL AND manifest IS NOT ?2";
    let manifest = row.manifest.as_ref().map(Digest::as_str);
    sql.execute("add an image", text, (row.id.as_str(), manifest, signed(row.size), boot))?;
    for (position, chain) in chains.iter().enumerate() {
        let text = "INSERT OR IGNORE INTO image_layers (image, position, chain_id) VALUES (?1, ?2, ?3)";
        let position = i64::try_from(position).unwrap_or(i64::MAX);
        sql.execute("add a layer to an image", text, (row.id.as_str(), position, chain.0.as_str()))?;
    }
    Ok(())
}

/// Has `id`, which is no image, hold layers.
pub(super) fn hold_layers(sql: Sql<'_>, id: &Digest, chains: &[ChainId]) -> Result<()> {
    sql.execute("hold layers", "DELETE FROM image_layers WHERE image = ?1", (id.as_str(),))?;
    for (position, chain) in chains.iter().enumerate() {
        let text = "INSERT INTO image_layers (image, position, chain_id) VALUES (?1, ?2, ?3)";
        let position = i64::try_from(position).unwrap_or(i64::MAX);
        sql.execute("hold a layer", text, (id.as_str(), position, chain.0.as_str()))?;
    }
    Ok(())
}

pub(super) fn set_size(sql: Sql<'_>, id: &Digest, size: u64) -> Result<()> {
    let text = "UPDATE images SET size = ?2 WHERE id = ?1";
    sql.execute("set the size of an image", text, (id.as_str(), signed(size))).map(drop)
}

pub(super) fn remove_image(sql: Sql<'_>, id: &Digest) -> Result<()> {
    sql.execute("remove names", "DELETE FROM image_names WHERE image = ?1", (id.as_str(),))?;
    sql.execute("remove an image", "DELETE FROM images WHERE id = ?1", (id.as_str(),)).map(drop)
}

/// What an owner uses.
pub(super) fn used_by(sql: Sql<'_>, owner: &str) -> Result<Option<Digest>> {
    let text = "SELECT image FROM image_uses WHERE owner = ?1";
    sql.row("read the use of an image", text, (owner,), |row| parsed(row, 0))
}

/// The layers of an image, lowest first.
pub(super) fn layers_of(sql: Sql<'_>, id: &Digest) -> Result<Vec<LayerRow>> {
    let text = "SELECT layers.chain_id, diff_id, size FROM image_layers JOIN layers USING (chain_id)
                WHERE image = ?1 ORDER BY position";
    sql.rows("read the layers of an image", text, (id.as_str(),), layer_row)
}

/// Lets go of the layers of an image that is gone and unused; returns those that nothing else
/// holds, uppermost first, their rows removed. Leased ones are left to [`drop_orphans`].
pub(super) fn drop_layers(
    sql: Sql<'_>,
    id: &Digest,
    leased: &dyn Fn(&DiffId) -> bool,
) -> Result<Vec<LayerRow>> {
    let layers = layers_of(sql, id)?;
    sql.execute(
        "remove the layers of an image",
        "DELETE FROM image_layers WHERE image = ?1",
        (id.as_str(),),
    )?;
    let mut dropped = Vec::new();
    for layer in layers.into_iter().rev() {
        let text = "SELECT 1 FROM image_layers WHERE chain_id = ?1 LIMIT 1";
        let used = sql.row("read the uses of a layer", text, (layer.chain.0.as_str(),), |_| Ok(()))?;
        if used.is_none() && !leased(&layer.diff) {
            remove_layer(sql, &layer.chain)?;
            dropped.push(layer);
        }
    }
    Ok(dropped)
}

/// Removes the rows of layers that no image has and no lease holds, and returns them.
pub(super) fn drop_orphans(sql: Sql<'_>, leased: &dyn Fn(&DiffId) -> bool) -> Result<Vec<LayerRow>> {
    let text = "SELECT chain_id, diff_id, size FROM layers
                WHERE chain_id NOT IN (SELECT chain_id FROM image_layers)";
    let mut dropped = sql.rows("find layers without an image", text, (), layer_row)?;
    dropped.retain(|layer| !leased(&layer.diff));
    dropped.iter().try_for_each(|layer| remove_layer(sql, &layer.chain))?;
    Ok(dropped)
}

pub(super) fn names_of(sql: Sql<'_>, id: &Digest) -> Result<Vec<Reference>> {
    let text = "SELECT name FROM image_names WHERE image = ?1 ORDER BY name";
    sql.rows("read the names of an image", text, (id.as_str(),), |row| parsed(row, 0))
}

pub(super) fn all_names(sql: Sql<'_>) -> Result<Vec<(Reference, Digest)>> {
    let text = "SELECT name, image FROM image_names ORDER BY name";
    sql.rows("read the names of images", text, (), |row| Ok((parsed(row, 0)?, parsed(row, 1)?)))
}

pub(super) fn named(sql: Sql<'_>, name: &Reference) -> Result<Option<Digest>> {
    let text = "SELECT image FROM image_names WHERE name = ?1";
    sql.row("read a name", text, (name.to_string(),), |row| parsed(row, 0))
}

/// `document` is what the name stands for in registries, if that is known.
pub(super) fn set_name(sql: Sql<'_>, name: &Reference, id: &Digest, document: Option<&Digest>) -> Result<()> {
    let text = "INSERT INTO image_names (name, image, document) VALUES (?1, ?2, ?3)
                ON CONFLICT (name) DO UPDATE SET image = ?2, document = ?3";
    sql.execute("set a name", text, (name.to_string(), id.as_str(), document.map(Digest::as_str))).map(drop)
}

pub(super) fn remove_name(sql: Sql<'_>, name: &Reference) -> Result<()> {
    sql.execute("remove a name", "DELETE FROM image_names WHERE name = ?1", (name.to_string(),)).map(drop)
}

pub(super) fn users(sql: Sql<'_>, id: &Digest) -> Result<Vec<String>> {
    let text = "SELECT owner FROM image_uses WHERE image = ?1 ORDER BY owner";
    sql.rows("read the uses of an image", text, (id.as_str(),), |row| row.get(0))
}

pub(super) fn add_use(sql: Sql<'_>, id: &Digest, owner: &str) -> Result<()> {
    let text =
        "INSERT INTO image_uses (owner, image) VALUES (?1, ?2) ON CONFLICT (owner) DO UPDATE SET image = ?2";
    sql.execute("use an image", text, (owner, id.as_str())).map(drop)
}

/// Ends a use and returns what was used.
pub(super) fn remove_use(sql: Sql<'_>, owner: &str) -> Result<Option<Digest>> {
    let text = "DELETE FROM image_uses WHERE owner = ?1 RETURNING image";
    sql.row("release an image", text, (owner,), |row| parsed(row, 0))
}

/// Images whose files may not be on the disk yet, with the boot id of their load.
pub(super) fn unsynced(sql: Sql<'_>) -> Result<Vec<(Digest, String)>> {
    let text = "SELECT id, unsynced FROM images WHERE unsynced IS NOT NULL";
    sql.rows("read images", text, (), |row| Ok((parsed(row, 0)?, row.get(1)?)))
}

pub(super) fn set_synced(sql: Sql<'_>, id: &Digest) -> Result<()> {
    sql.execute("mark an image as synced", "UPDATE images SET unsynced = NULL WHERE id = ?1", (id.as_str(),))
        .map(drop)
}

/// Images that are gone and unused while layers are still kept for them.
pub(super) fn unheld(sql: Sql<'_>) -> Result<Vec<Digest>> {
    let text = "SELECT DISTINCT image FROM image_layers
                WHERE image NOT IN (SELECT id FROM images) AND image NOT IN (SELECT image FROM image_uses)";
    sql.rows("find unheld layers", text, (), |row| parsed(row, 0))
}
