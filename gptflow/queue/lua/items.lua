-- Record how items of a batch ended, each one once.
--
-- KEYS: batch, results, stream
-- ARGV: prefix, seconds to keep them, id of the message that carries the items, its fence ("" to
--   record the items whoever runs them), id of the batch, then for each item: number, "done" or
--   "failed", result
-- Returns how many were recorded now, or -1 where the message was given to another worker.
local batch, results, stream = unpack(KEYS)
local _, ttl, id, fence, batch_id = unpack(ARGV)
if call('EXISTS', batch) == 0 then return 0 end
if fence ~= '' then
  local held = read(job_key(id), 'state', 'fence')
  if held.state ~= 'running' or held.fence ~= fence then
    tally('refused_results')
    return -1
  end
end

local fresh = {}
for index = 6, #ARGV, 3 do
  if call('HSETNX', results, ARGV[index], ARGV[index + 2]) == 1 then
    call('HINCRBY', batch, ARGV[index + 1], 1)
    fresh[#fresh + 1] = ARGV[index]
  end
end
if #fresh > 0 then
  call('XADD', stream, '*', 'items', table.concat(fresh, ','))
  tally('ended_items', #fresh)
  settle_batch(batch_id, tonumber(ttl))
end
return #fresh
