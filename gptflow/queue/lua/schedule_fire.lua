-- Settle a schedule's fires up to a moment: enqueue the job of the last of them, or let them go.
--
-- All in one step, so that a scheduler may die anywhere and any number may try at once. What
-- `enqueue.lua` does is the function `enqueue` here.
--
-- KEYS: the schedule's key, the job's key
-- ARGV: prefix, the mark as the scheduler read it, the new mark, overlap policy, seconds to keep a
--   job that is replaced, then what `enqueue.lua` takes after the prefix; nothing to let them go
-- Returns one of
--   {"moved"}             another scheduler was faster: look again
--   {"paused"}
--   {"dropped"}           as was asked
--   {"held", id}          the job of an earlier fire has not ended: try again later
--   {"skipped", id}       the same, and this fire was let go
--   {"accepted", id, id}  and the id of the job that it replaces, or ""
--   {"known", id}, {"full", ...}, {"memory", ...}, {"invalid", why}  as `enqueue.lua`
local key = KEYS[1]
local _, expected, mark, overlap, ttl = unpack(ARGV)
local stands = read(key, 'mark', 'paused', 'job')
if stands.paused then return { 'paused' } end
if stands.mark ~= expected or tonumber(mark) <= tonumber(expected) then return { 'moved' } end

local function settle(...) call('HSET', key, 'mark', mark, ...) end

if #ARGV == 5 then
  settle()
  return { 'dropped' }
end

local earlier = stands.job and place_of(stands.job)
local busy = earlier and (earlier.state == 'queued' or earlier.state == 'running')
if busy and overlap == 'skip' then
  settle()
  call('HINCRBY', key, 'skipped', 1)
  return { 'skipped', earlier.id }
elseif busy and overlap == 'queue' then
  call('HSET', key, 'held', text(now()))
  return { 'held', earlier.id }
end

local reply = enqueue({ KEYS[2] }, { P, unpack(ARGV, 6) })
if reply[1] == 'invalid' then
  settle()
  return reply
elseif reply[1] ~= 'accepted' and reply[1] ~= 'known' then
  return reply
end
settle('fire', mark, 'job', reply[2])
if reply[1] == 'known' then return reply end
call('HINCRBY', key, 'fired', 1)
if not busy or overlap ~= 'replace' then return { 'accepted', reply[2], '' } end
finish(earlier, 'cancelled', failure(earlier, 'cancelled', 'GF503',
  string.format('Job %s was cancelled: the next fire of its schedule replaced it.', earlier.id)), ttl)
if earlier.state == 'running' then call('PUBLISH', P .. 'cancels', earlier.id) end
return { 'accepted', reply[2], earlier.id }
