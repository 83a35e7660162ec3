-- one(id) -> {bytes or false, time of death or '', history or '', recovered or '0', due or '', agent or ''}
local id = ARGV[1]
local function score(key)
  local score = redis.call('ZSCORE', key, id)
  return score and whole(score) or ''
end
return {redis.call('HGET', MESSAGES, id), score(DEAD), redis.call('HGET', HISTORY, id) or '',
  tostring(count_of(redis.call('HGET', RECOVERED, id) or '0')), score(RETRY), score(INFLIGHT)}
