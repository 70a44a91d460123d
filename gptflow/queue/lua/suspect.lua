-- Ring for one job that has to run alone, for a worker that has nothing else in hand.
--
-- KEYS: the suspects
-- ARGV: prefix, worker, seconds for which no other worker may take one, 1 if the worker is idle
-- Returns the id of the job, or "" where the worker is to wait until it is idle, or false where
-- there is none, or another worker sees to it.
local _, worker, seconds, idle = unpack(ARGV)
local holder = P .. 'quarantine'
local other = call('GET', holder)
if other and other ~= worker then return false end
local id = call('ZRANGE', KEYS[1], 0, 0)[1]
if not id then
  call('DEL', holder)
  return false
end
call('SET', holder, worker, 'EX', seconds)
if idle ~= '1' then return '' end
call('ZREM', KEYS[1], id)
mark_fed(place_of(id), now())
return id
